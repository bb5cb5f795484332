"""From an archive of TorchServe to a build request: what its handler means, and which of its code would run.

`image_classifier` and `object_detector` are answered by Flambeau's own tasks and engines, without a line of the
archive's code, where its weights are those of an architecture that is known; and a classifier with `--allow-code` where
its network is code. Anything else is a handler: it runs in the workers, with `--allow-code`. The archive is unpacked
once, into a folder named after its contents.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from flambeau import checkpoints, usercode
from flambeau.bundle import storage
from flambeau.bundle.storage import CodeReference, HandlerConfig
from flambeau.checkpoints import model_archive
from flambeau.checkpoints.model_archive import ArchivedModel
from flambeau.errors import CodeNotAllowed, ConfigError, SourceError
from flambeau.settings.source import SourceOptions
from flambeau.sources import model_folder, network_class, packages
from flambeau.sources.request import BuildRequest, build_request, model_name, refuse_idle
from flambeau.system import staging

BUILT_IN = ("image_classifier", "object_detector", "image_segmenter", "base_handler", "vision_handler")
"""The handlers that TorchServe brings."""

_CLASSIFIER: dict[str, Any] = {"task": "classification", "resize": 256, "crop": 224, "mean": (0.485, 0.456, 0.406),
               "std": (0.229, 0.224, 0.225)}  # fmt: skip
"""The transform of `image_classifier`: Resize(256), CenterCrop(224), ImageNet's mean and deviation."""


def request_for(options: SourceOptions, home: Path) -> BuildRequest | None:
    """The build request for an archive; `None` for any other source. It is unpacked below `home`.

    Raises `SourceError`, `CodeNotAllowed` or `InstallsNotAllowed`.
    """
    if options.source is None:
        return None
    path = Path(options.source)
    found = model_archive.read(path)
    if found is None:
        return _of_sagemaker(path, options, home)
    if options.weights or options.arch:
        raise SourceError(f"{path} is an archive with a network of its own: leave out --weights and --arch")
    if found.handler in _MAPPED:
        folder = _opened(found, path, home)
        code = code_needed(found, path, folder)
        if code and not options.allow_code:
            raise CodeNotAllowed(
                f"{path}: its weights alone do not say what it computes ({code}): if you trust its author, add "
                "--allow-code"
            )
        if not answers_itself(found, code):
            return _mapped(found, path, folder, options, code=code)
    return _handled(found, path, options, home)


_MAPPED = ("image_classifier", "object_detector")


def _opened(found: ArchivedModel, path: Path, home: Path) -> Path:
    """The folder with the files of a TorchServe archive, whose manifest and configuration are those that were read."""
    folder = _unpacked(path, found.name, found.names, home)
    again = model_archive.read(folder)
    # as text: a NaN does not equal itself
    if again is None or repr((again.manifest, again.config)) != repr((found.manifest, found.config)):
        raise _changed(path)
    return folder


def _changed(path: Path) -> SourceError:
    return SourceError(f"{path} changed while it was read: try again once it is written")


def _unpacked(path: Path, name: str, names: tuple[str, ...], home: Path) -> Path:
    """The folder with the archive's files: named after their contents, so that it is complete or absent."""
    digest = _digest(path, names)
    target = home / f"{model_name(name)}-{digest[:32]}"
    try:
        home.mkdir(parents=True, exist_ok=True)
        with staging.lock(home, target.name):
            if not target.is_dir():
                staging.clear(home)
                with staging.filling(target) as folder:
                    model_archive.unpack(path, folder)
                    if _digest(path, names) != digest:  # else these files would be taken for the others for ever
                        raise _changed(path)
                    folder.rename(target)
        if not model_archive.holds(target, names):  # another file took its place after its names were read
            raise _changed(path)
    except OSError as error:
        raise SourceError(f"{path} cannot be unpacked to {home} ({error.strerror}): name another folder with "
                          "FLAMBEAU_CACHE") from error  # fmt: skip
    return target


def _digest(path: Path, names: tuple[str, ...]) -> str:
    if path.is_file():
        return storage.sha256_of(path)
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name} {storage.sha256_of(path / name)}\n".encode())
    return digest.hexdigest()


# Built-in handlers that Flambeau's own tasks answer.


def is_mapped(found: ArchivedModel) -> bool:
    """Whether the archive's handler is one that a task of Flambeau's answers for."""
    return found.handler in _MAPPED


def code_needed(found: ArchivedModel, path: Path, folder: Path) -> str:
    """Why an archive with such a handler cannot be served without its code; empty if it can.

    `folder` holds its files. Raises `SourceError` for one that cannot be served at all.
    """
    if found.weights is None:
        raise SourceError(
            f"{path} holds no serialised model, which {found.handler} needs: archive it again with --serialized-file"
        )
    report = checkpoints.examine(folder / found.weights)
    if report.verdict == "refused":
        raise SourceError(f"{path}: its {found.weights} {report.reason}: {report.remedy}")
    if report.verdict == "code":
        return f"its {found.weights} {report.reason}"
    if found.network is None or not report.entries:
        return ""
    own = network_class.read(folder / found.network, path)
    return f"the class {own.name} in {found.network}: {own.hidden}" if own.hidden else ""


def answers_itself(found: ArchivedModel, code: str) -> bool:
    """Whether the handler runs after all: only a detector of torchvision's has the outputs of our task. `code`: why the
    network is code, if it is."""
    return bool(code) and found.handler == "object_detector"


def _mapped(found: ArchivedModel, path: Path, folder: Path, options: SourceOptions, *, code: str) -> BuildRequest:
    weights = folder / str(found.weights)
    said = msgspec.structs.asdict(options)
    given = {name: value for name, value in said.items() if value not in ({}, None)}
    usual: dict[str, Any] = {} if found.handler == "object_detector" else dict(_CLASSIFIER)
    holds_weights = bool(checkpoints.examine(weights).entries)
    if found.labels is not None:
        usual["labels"] = str(folder / found.labels)
    if code and found.network is not None and holds_weights:
        usual["arch"] = f"{folder / found.network}:{network_class.read(folder / found.network, path).name}"
    if found.handler == "image_classifier" and (code or not holds_weights):
        usual["pipeline"] = "image"
    request = build_request(SourceOptions(**(usual | given | {"source": str(weights)})))
    # its images are prepared as the handler does, whatever else lies in the archive
    return msgspec.structs.replace(request, name=model_name(found.name), timm=None, transformers=None)


# Handlers, whose code runs in the workers.


def _handled(found: ArchivedModel, path: Path, options: SourceOptions, home: Path) -> BuildRequest:
    what = f"{path} is an archive of TorchServe: its handler {found.handler or '(none)'}"
    if not found.handler:
        raise SourceError(f"{path} names no handler: archive it again with --handler")
    if found.handler == "text_classifier" and "text_classifier.py" not in found.names:
        raise SourceError(
            f"{path} uses the handler text_classifier, whose source_vocab.pt is a pickled object of torchtext, and "
            "nobody maintains that any more: save the words as a dict, put a handler that reads it into the archive, "
            "and serve that with --allow-code (docs/migrating-from-torchserve.md, Text classifiers)"
        )
    usercode.refuse_unless(options.allow_code, what)
    refuse_idle(options, "an archive with a handler of its own", used=())
    folder = _opened(found, path, home)
    requirements = _requirements(folder / found.requirements) if found.requirements else ""
    packages.provide(requirements, home.with_name("packages"), whose=path.name, allowed=options.allow_installs)
    return msgspec.structs.replace(
        BuildRequest(kind="python", name=model_name(found.name), options=options),
        file=str(path.resolve()) if path.is_file() else None,
        handler=_config(found, path, requirements),
        files=str(folder),
    )


def _requirements(file: Path) -> str:
    return file.read_text("utf-8", "replace")


def _config(found: ArchivedModel, path: Path, requirements: str) -> HandlerConfig:
    module, colon, function = found.handler.partition(":")
    file = module if module.endswith(".py") else f"{module}.py"
    if file not in found.names:
        file = file.rpartition("/")[2]
    if file in found.names:
        code = CodeReference(name=function, file=f"{storage.HANDLER_FILES}/{file}")
    elif module in BUILT_IN and not colon:
        code = CodeReference(name="", module=f"ts.torch_handler.{module}")
    else:
        raise SourceError(
            f"{path} names the handler {found.handler}, and has no file {file}: archive it again with that"
        )
    limits = {
        ours: value for theirs, ours in _LIMITS.items() if (value := _number(found.config.get(theirs))) is not None
    }
    return HandlerConfig(
        code=code,
        contract="torchserve",
        manifest=found.manifest,
        yaml=found.config,
        envelope=found.envelope or "",
        requirements=requirements,
        **limits,
    )


_LIMITS = {
    "batchSize": "batch",
    "maxBatchDelay": "delay_ms",
    "minWorkers": "workers",
    "maxWorkers": "most_workers",
    "responseTimeout": "timeout",
    "startupTimeout": "startup_timeout",
}


def _number(value: object) -> int | None:
    """A whole number above 0; anything else counts as not given, as TorchServe has it."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


# SageMaker's models: `model.tar.gz`, or the folder that it is unpacked to.


def _of_sagemaker(path: Path, options: SourceOptions, home: Path) -> BuildRequest | None:
    """The request for a model of SageMaker's; `None` for any other source. Its script runs only with `--allow-code`."""
    names = model_archive.files_of_sagemaker(path)
    if names is None:
        return None
    script = next((name for name in model_archive.SCRIPTS if name in names), None)
    if script is None and path.is_dir():
        return None
    name = model_name(path.name.partition(".")[0])
    if script is not None:
        usercode.refuse_unless(options.allow_code, f"{path}: its {script}")
        refuse_idle(options, "a model with a script of its own", used=())
    folder = _unpacked(path, name, names, home)
    if script is None:
        try:
            source = model_folder.find(str(folder)).source
        except ConfigError as error:
            raise SourceError(str(error).replace(str(folder), str(path))) from None
        request = build_request(msgspec.structs.replace(options, source=source))
        return msgspec.structs.replace(request, name=name)
    code = CodeReference(name="", file=f"{storage.HANDLER_FILES}/{script}")
    beside = (Path(script).parent / model_archive.REQUIREMENTS).as_posix()
    requirements = _requirements(folder / beside) if beside in names else ""
    packages.provide(requirements, home.with_name("packages"), whose=path.name, allowed=options.allow_installs)
    return msgspec.structs.replace(
        BuildRequest(kind="python", name=name, options=options),
        file=str(path.resolve()) if path.is_file() else None,
        handler=HandlerConfig(code=code, contract="sagemaker", requirements=requirements),
        files=str(folder),
    )
