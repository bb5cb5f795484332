"""Recognises a source, by the form of SOURCE and the contents of its file, and makes the request to the build process.

It also defines the values that pass between the two processes. Only `flambeau.checkpoints` reads files here; it runs
nothing, and nobody's code is imported.
"""

import os
from pathlib import Path
from typing import Literal

import msgspec

from flambeau import checkpoints, usercode
from flambeau.bundle.storage import CodeReference, HandlerConfig
from flambeau.checkpoints import timm_config, transformers_config
from flambeau.checkpoints.report import Report
from flambeau.errors import CodeNotAllowed, SourceError
from flambeau.settings.service import EngineChoice
from flambeau.settings.source import SourceOptions
from flambeau.tasks import OF_ANOTHER_INPUT

SourceKind = Literal["default", "pretrained", "checkpoint", "program", "onnx", "python"]
"""`checkpoint` holds weights; `program` a network with its code: a pickled module, TorchScript or a torch.export."""

DEFAULT = "default"
"""The name of the built-in model, for commands that need a SOURCE. No SOURCE at all means the same."""


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request to the build process, sent as JSON on its standard input. Paths are absolute.

    `file` is the file that SOURCE or `--weights` names; `architecture` is a registered name, `code` the user's own
    class. `tokenizer` is the one that the user names, or that lies beside the file; `timm` is timm's `config.json`
    beside weights, `transformers` that of Hugging Face's transformers. `engine` is the engine to use, or `auto` to have
    it measured; `int8` is the folder of calibration inputs.
    `handler`: a Python model in another server's manner, whose files lie in the folder `files`.
    """

    kind: SourceKind
    name: str
    options: SourceOptions
    file: str | None = None
    architecture: str | None = None
    code: CodeReference | None = None
    tokenizer: str | None = None
    timm: str | None = None
    transformers: str | None = None
    portable: bool = False
    engine: EngineChoice = "auto"
    int8: str | None = None
    handler: HandlerConfig | None = None
    files: str | None = None


class BuildStep(msgspec.Struct, frozen=True, tag="step"):
    """The build is at step `number` of `of`."""

    number: int
    of: int
    what: str


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    """Progress of the running step, from 0 to 1."""

    share: float


class Note(msgspec.Struct, frozen=True, tag="note"):
    """Something the user should read."""

    text: str


class BuildFailure(msgspec.Struct, frozen=True, tag="failure"):
    """The build failed. `error` is the name of a class in `flambeau.errors`."""

    error: str
    message: str


class Imported(msgspec.Struct, frozen=True, tag="imported"):
    """The absolute paths of the user's own code files that the build imported."""

    files: tuple[str, ...]


Event = BuildStep | Advance | Note | BuildFailure | Imported
"""What the build process writes to its standard output, one line of JSON each."""

IMAGE_OPTIONS = ("labels", "task", "activation", "normalize", "resize", "crop", "mean", "std", "levels", "threshold")
AUDIO_OPTIONS = ("sample_rate", "max_seconds", "log_mel")
TEXT_OPTIONS = ("tokenizer", "pooling", "max_tokens", "truncate")
_FILE_OPTIONS = ("weights_key", "samples")
OPTIONS = (
    "arch", "arch_args", "weights", "hidden_activation", "num_classes", "pipeline", "input_shape", "input_dtype",
    "output_name", *_FILE_OPTIONS, *IMAGE_OPTIONS, *TEXT_OPTIONS, *AUDIO_OPTIONS,
)  # fmt: skip

_TOKENIZER = "tokenizer.json"
_GRAPHS = "onnx"  # the folder below a tokenizer where Hugging Face's repositories keep graphs
_GRAPH = "model.onnx"


def refuse_idle(options: SourceOptions, what: str, *, used: tuple[str, ...]) -> None:
    """Raise `SourceError` for an option that would have no effect: the user who gave it expects one."""
    for name in OPTIONS:
        if name not in used and getattr(options, name) not in (None, {}):
            raise SourceError(f"--{name.replace('_', '-')} has no effect on {what}: leave it out")


def build_request(options: SourceOptions) -> BuildRequest:
    """The build request for a source. Raises `SourceError` or `CodeNotAllowed`."""
    options = msgspec.structs.replace(options, labels=_absolute(options.labels), samples=_absolute(options.samples))
    options = _with_pipeline(options)
    source = options.source
    if source is None or (source == DEFAULT and not Path(source).exists()):
        if options.arch or options.weights:
            raise SourceError("--arch and --weights need a SOURCE: name the file or the architecture first")
        refuse_idle(options, "the default model", used=("samples", *IMAGE_OPTIONS, *_of_features(options)))
        return BuildRequest(kind="default", name="efficientnet_lite0", options=options)
    if ":" in source and not Path(source).is_file():
        usercode.refuse_unless(options.allow_code, source)
        refuse_idle(options, "a Python model", used=("samples",))
        code = usercode.parse(source)
        return BuildRequest(kind="python", name=model_name(code.name), options=options, code=code)
    if Path(source).exists():
        if options.weights:
            raise SourceError(f"SOURCE {source} and --weights {options.weights} both name a file: leave one out")
        return _request_for_file(source, options, name=model_name(Path(source).stem), arch=options.arch)
    if _looks_like_path(source):
        raise SourceError(f"{source} does not exist: name a file, or a folder of models")
    if options.arch:
        raise SourceError(f"SOURCE {source} and --arch {options.arch} both name an architecture: leave one out")
    if options.weights:
        if not Path(options.weights).is_file():
            raise SourceError(f"--weights {options.weights} does not exist: name a file of weights")
        return _request_for_file(options.weights, options, name=model_name(source), arch=source)
    refuse_idle(options, source, used=("arch_args", "num_classes", "samples", *IMAGE_OPTIONS, *_of_features(options)))
    return BuildRequest(kind="pretrained", name=model_name(source), options=options, architecture=source)


def _with_pipeline(options: SourceOptions) -> SourceOptions:
    """The options with the pipeline that the name of the task says, and our name of the task. Raises `SourceError`."""
    pipeline, task = OF_ANOTHER_INPUT.get(options.task or "", (None, options.task))
    if pipeline is None:
        return options
    if options.pipeline not in (None, pipeline):
        raise SourceError(
            f"--task {options.task} is of {pipeline}, and --pipeline {options.pipeline} is not: leave one out"
        )
    return msgspec.structs.replace(options, task=task, pipeline=pipeline)


def _request_for_file(file: str, options: SourceOptions, *, name: str, arch: str | None) -> BuildRequest:
    """The request for a file, by what it holds."""
    report = checkpoints.examine(Path(file))
    _refuse_unless_loadable(file, report, options)
    kind: SourceKind = "onnx" if report.format == "onnx" else "checkpoint" if report.verdict == "data" else "program"
    request = BuildRequest(kind=kind, name=name, options=options, file=str(Path(file).resolve()))
    own = arch is not None and ":" in arch
    used: tuple[str, ...]
    if kind != "checkpoint" and not _holds_weights(report, options):
        what = f"{Path(file).name}, which holds its network already"
        used = ("pipeline", "input_shape", "output_name", *_FILE_OPTIONS, *IMAGE_OPTIONS, *TEXT_OPTIONS, *AUDIO_OPTIONS)
        refuse_idle(options, what, used=(*used, *(() if kind == "onnx" else ("input_dtype",))))
        return msgspec.structs.replace(request, tokenizer=_tokenizer_for(file, options))
    if options.arch_args and arch is None:
        raise SourceError("--arch-args needs --arch: name the architecture that they belong to")
    if arch is None and (config := transformers_config.beside(Path(file))):
        used = ("weights", "pipeline", *_FILE_OPTIONS, *IMAGE_OPTIONS, *TEXT_OPTIONS)
        refuse_idle(options, f"{Path(file).name} with the {config.name} of transformers beside it", used=used)
        return msgspec.structs.replace(request, transformers=str(config), tokenizer=_tokenizer_for(file, options))
    if arch is None or not own:
        used = (
            "arch", "arch_args", "weights", "hidden_activation", "num_classes", *_FILE_OPTIONS, *IMAGE_OPTIONS,
            *_of_features(options),
        )  # fmt: skip
        refuse_idle(options, f"--arch {arch}" if arch else f"{Path(file).name} without --arch file.py:Class", used=used)
        beside = timm_config.beside(Path(file))
        return msgspec.structs.replace(request, architecture=arch, timm=str(beside) if beside else None)
    usercode.refuse_unless(options.allow_code, f"--arch {arch}")
    used = (
        "arch", "arch_args", "weights", "pipeline", "input_shape", "input_dtype", "output_name", *_FILE_OPTIONS,
        *IMAGE_OPTIONS, *TEXT_OPTIONS, *AUDIO_OPTIONS,
    )  # fmt: skip
    refuse_idle(options, "an own network", used=used)
    found = _tokenizer_for(file, options)
    return msgspec.structs.replace(request, code=usercode.parse(str(arch)), tokenizer=found)


def _tokenizer_for(file: str, options: SourceOptions) -> str | None:
    """The tokenizer that the user names, or that lies beside the file. Raises `SourceError` for one that is no file."""
    if options.pipeline in ("image", "audio", "tensor"):
        if options.tokenizer:
            raise SourceError(f"--tokenizer is for texts, and --pipeline {options.pipeline} takes none: leave one out")
        return None
    if options.tokenizer:
        if not Path(options.tokenizer).is_file():
            raise SourceError(f"--tokenizer {options.tokenizer} is not a file: name a {_TOKENIZER}")
        return str(Path(options.tokenizer).resolve())
    if found := tokenizer_beside(Path(file)):
        return str(found)
    if options.pipeline == "text":
        raise SourceError(
            f"--pipeline text needs a {_TOKENIZER}, and none lies beside {file}: name it with --tokenizer"
        )
    return None


def tokenizer_beside(file: Path) -> Path | None:
    """The `tokenizer.json` in the file's folder, or above it if that is the folder of the graphs.

    Before the folder where a link leads: the hub keeps a model as a folder of links to files that lie together with
    those of all others.
    """
    near = (file.absolute().parent, file.resolve().parent)
    folders = (each for folder in near for each in ((folder, folder.parent) if folder.name == _GRAPHS else (folder,)))
    return next((each / _TOKENIZER for each in folders if (each / _TOKENIZER).is_file()), None)


def as_graph(file: Path) -> str:
    """How weights of an unknown network that lie beside a tokenizer are served over texts; empty for any others."""
    if tokenizer_beside(file) is None:
        return ""
    folder = file.absolute().parent
    graphs = (folder / _GRAPHS / _GRAPH, folder / _GRAPH)
    if found := next((each for each in graphs if each.is_file()), None):
        return f"; a {_TOKENIZER} lies beside it, and a graph, which is served over texts: flambeau serve {found}"
    return (
        f"; a {_TOKENIZER} lies beside it: the graph that optimum-cli export onnx --model {file.parent} OUT makes of "
        "Hugging Face's networks is served over texts, by flambeau serve OUT/model.onnx"
    )


def beside_tokenizer(tokenizer: str) -> tuple[Path, ...]:
    """The files beside a tokenizer that say what becomes of its tokens, as Hugging Face's libraries write them."""
    names = (
        "1_Pooling/config.json", "config.json", "config_sentence_transformers.json", "modules.json",
        "sentence_bert_config.json",
    )  # fmt: skip
    return tuple(file for file in (Path(tokenizer).parent / name for name in names) if file.is_file())


def _of_features(options: SourceOptions) -> tuple[str, ...]:
    """The option that answers with a head's outputs instead of the features before it."""
    return ("output_name",) if options.task == "embedding" else ()


def _holds_weights(report: Report, options: SourceOptions) -> bool:
    """Whether the file's weights would be used, although it also names code."""
    return bool(report.entries) and not checkpoints.choose(report, options.weights_key)[0].module


def _refuse_unless_loadable(file: str, report: Report, options: SourceOptions) -> None:
    """Raise for a file that we cannot load, or that carries code when code is not allowed."""
    if report.format == "repository":
        raise SourceError(
            f"{file} is a repository of models: name one of the models in it, or serve them all with flambeau serve"
        )
    if report.verdict == "refused":
        raise SourceError(f"{file} {report.reason}: {report.remedy}")
    if report.verdict == "code" and not options.allow_code:
        raise CodeNotAllowed(f"{file} {report.reason}: {report.remedy}")


def _absolute(text: str | None) -> str | None:
    return str(Path(text).resolve()) if text and Path(text).exists() else text


def _looks_like_path(text: str) -> bool:
    suffixes = {".pth", ".pt", ".pt2", ".bin", ".ckpt", ".safetensors", ".onnx", ".mar", ".tar", ".py"}
    name = text.removeprefix("timm/").removeprefix("torchvision/")  # these are no folders: they name the library
    return os.sep in name or "/" in name or Path(name).suffix in suffixes


def model_name(text: str) -> str:
    """A model's name, made from a file's name."""
    name = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "_" for char in text).strip("._-")
    return name[:64] or "model"
