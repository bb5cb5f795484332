"""The bill of materials of an image, in CycloneDX 1.5 as JSON (https://cyclonedx.org/docs/1.5/json/).

It lists what `flambeau package` puts into the image: the packages with their licences and hashes, Flambeau, and the
bundle. It does not know the base image: a scanner of images lists that. The same contents make the same bytes.
"""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from flambeau.bundle.storage import MANIFEST, Manifest, sha256_of
from flambeau.deploy import wheel
from flambeau.deploy.requirements import OWN, Package
from flambeau.version import VERSION

FILE = "sbom.cdx.json"


def write(
    folder: Path, manifest: Manifest, packages: tuple[Package, ...], hashes: dict[str, tuple[str, ...]], *, epoch: int
) -> None:
    """Write `sbom.cdx.json` into a folder that holds the wheel and the bundle. `epoch` is its date in Unix seconds."""
    model = f"model:{manifest.name}"
    own = _purl(OWN, VERSION)
    sums = {each.name: _purl(each.name, each.version) for each in packages}
    document: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": OWN, "version": VERSION}]},
            "component": {"type": "container", "bom-ref": "image", "name": manifest.name},
        },
        "components": [
            {
                "type": "library", "bom-ref": own, "name": OWN, "version": VERSION, "purl": own,
                "hashes": [_hash(sha256_of(folder / wheel.NAME))], "licenses": [{"license": {"id": "Apache-2.0"}}],
            },
            *(_component(each, hashes.get(each.name, ())) for each in packages),
            {
                "type": "machine-learning-model", "bom-ref": model, "name": manifest.name,
                "hashes": [_hash(sha256_of(folder / "bundle" / MANIFEST))],
                "properties": [
                    {"name": f"flambeau:member:{name}", "value": f"sha256:{sha256}"}
                    for name, sha256 in sorted(manifest.members.items())
                ],
            },
        ],
        "dependencies": [
            {"ref": "image", "dependsOn": [own, model]},
            {"ref": own, "dependsOn": sorted(sums.values())},
            *(
                {"ref": sums[each.name], "dependsOn": [sums[name] for name in each.requires if name in sums]}
                for each in packages
            ),
        ],
    }  # fmt: skip
    text = msgspec.json.encode(document)
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, text.decode())}"
    (folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _component(package: Package, sums: tuple[str, ...]) -> dict[str, Any]:
    purl = _purl(package.name, package.version)
    found: dict[str, Any] = {
        "type": "library", "bom-ref": purl, "name": package.name, "version": package.version, "purl": purl,
        "description": package.summary,
        # one wheel for each kind of processor: which of them an image holds is not known here
        "properties": [{"name": "flambeau:wheel", "value": f"sha256:{each}"} for each in sums],
    }  # fmt: skip
    if package.licence:
        found["licenses"] = [{"license": {"name": package.licence}}]
    return found


def _purl(name: str, version: str) -> str:
    return f"pkg:pypi/{name}@{version.replace('+', '%2B')}"


def _hash(sha256: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": sha256}
