"""Compares the installed packages with the requirements of this Flambeau. None of them is imported."""

import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flambeau.doctor import Finding
from flambeau.system.machine import pip_install

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)\s*(?:(?:>=|==)\s*(?P<floor>[\d.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*['\"]([\w-]+)['\"]")
_PLATFORM = re.compile(r"sys_platform\s*(==|!=)\s*['\"](\w+)['\"]")
_OF_DEVELOPERS = ("test", "lint")

_DANGERS = {
    "torch": "older ones can be made to corrupt memory by a weights file (CVE-2026-24747)",
    "pillow": "older ones have known holes in their decoders",
    "werkzeug": "older ones have known holes",
    "urllib3": "older ones can be made to fill the memory by a compressed answer (CVE-2025-66471)",
}
"""The reason for a minimum version that is about security."""

_FOR = {
    "torch": "build bundles, and serve with PyTorch itself",
    "onnx": "build bundles of ONNX files without PyTorch",
    "timm": "build the networks of timm",
    "transformers": "build the networks of Hugging Face's transformers",
    "openvino": "serve with OpenVINO",
    "parquet": "write Parquet with flambeau predict",
    "grpc": "serve gRPC",
    "otel": "send traces",
}


@dataclass(frozen=True, slots=True)
class Requirement:
    """A required package, its minimum version, and the extra that it belongs to."""

    name: str
    floor: str | None
    extra: str | None


def requirements() -> list[Requirement]:
    """The requirements of this Flambeau on this platform, without those for its developers."""
    found = []
    for text in importlib.metadata.requires("flambeau") or []:
        package, _, marker = text.partition(";")
        extra, platform = _EXTRA.search(marker), _PLATFORM.search(marker)
        if platform and (platform[1] == "==") != (sys.platform == platform[2]):
            continue
        named = _REQUIREMENT.match(package)
        if named and (extra is None or extra[1] not in _OF_DEVELOPERS):
            found.append(Requirement(named["name"], named["floor"], extra[1] if extra else None))
    return found


def check_packages() -> Iterator[Finding]:
    """Check the packages: a finding for what serving needs, one for each extra, and one for each wrong package."""
    wanted = requirements()
    core = [each for each in wanted if each.extra is None]
    wrong = [finding for each in core if (finding := check_requirement(each)) is not None]
    yield from wrong
    if not wrong:
        yield Finding("packages", "fine", f"all {len(core)} that serving needs")
    extras = {
        extra: [each for each in wanted if each.extra == extra]
        for extra in dict.fromkeys(each.extra for each in wanted if each.extra)
    }
    for extra, needed in extras.items():
        others = {each.name for other, of in extras.items() if other != extra and _whole(of) for each in of}
        yield from _of_extra(extra, needed, others=others)
    yield from _torchvision_beside_torch()


def _whole(wanted: list[Requirement]) -> bool:
    return all(version(each.name) for each in wanted)


def _of_extra(extra: str, wanted: list[Requirement], *, others: set[str]) -> Iterator[Finding]:
    """Check an extra. Packages that also belong to `others`, the installed extras, do not show that it was wanted."""
    there = [each for each in wanted if version(each.name)]
    purpose, install = _FOR.get(extra, "use it"), pip_install(extra)
    if all(each.name in others for each in there) and not _whole(wanted):
        yield Finding(extra, "note", "not installed", f"to {purpose}: {install}")
        return
    wrong = [finding for each in there if (finding := check_requirement(each)) is not None]
    yield from wrong
    missing = [each.name for each in wanted if not version(each.name)]
    if missing:
        yield Finding(extra, "warning", f"without {', '.join(missing)}", f"to {purpose}: {install}")
    elif not wrong:
        yield Finding(extra, "fine", ", ".join(f"{each.name} {version(each.name)}" for each in there))


def check_requirement(wanted: Requirement) -> Finding | None:
    """The finding if a package is missing or too old, else `None`."""
    found = version(wanted.name)
    if found is None:
        return Finding(wanted.name, "broken", "not installed", f"pip install {wanted.name}")
    if wanted.floor is None or _release(found) >= _release(wanted.floor):
        return None
    why = _DANGERS.get(wanted.name.lower(), f"this Flambeau was made with {wanted.floor} and newer")
    return Finding(wanted.name, "broken", f"{found}: {why}", f"pip install '{wanted.name}>={wanted.floor}'")


def version(package: str) -> str | None:
    """The installed version, or `None`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _release(text: str) -> tuple[int, ...]:
    """A version as numbers, without a suffix such as in 2.10.0+cpu or 3.0rc1."""
    numbers = re.match(r"\d+(\.\d+)*", text)
    parts = tuple(map(int, numbers[0].split("."))) if numbers else ()
    return parts + (0,) * (4 - len(parts))


def _torchvision_beside_torch() -> Iterator[Finding]:
    """Check whether torchvision was made for this torch: its compiled part names the libraries of its own torch."""
    torch, vision = _folder("torch"), _folder("torchvision")
    compiled = next(vision.glob("_C*.so"), None) if vision else None
    if torch is None or compiled is None:
        return
    if b"libtorch_cuda" in compiled.read_bytes() and not any((torch / "lib").glob("libtorch_cuda*")):
        yield Finding(
            "torchvision", "note", f"made for CUDA, beside torch {version('torch')} without it",
            "Flambeau copes; `import torchvision` in code of yours does not: install both from the same index",
        )  # fmt: skip


def _folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None
