"""Inference scripts of SageMaker's PyTorch containers: `model_fn`, `input_fn`, `predict_fn`, `output_fn`.

    model_fn(model_dir)                          loads the model; needed, unless its only file is TorchScript
    input_fn(body, content_type)                 a request's body to what `predict_fn` takes
    predict_fn(data, model)                      its answer
    output_fn(prediction, accept)                the answer's body, or (body, media type)
    transform_fn(model, body, content_type, accept)   instead of those three

A function with one parameter more is given the context. Defaults read and write JSON, CSV and npy, without pickle. One
request at a time, as those containers do by default.
"""

import csv
import inspect
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from flambeau import usercode
from flambeau.bundle.storage import HANDLER_FILES, Bundle, HandlerConfig
from flambeau.errors import InvalidInput, RequestError, SourceError
from flambeau.handlers.base import BYTES, JSON, HandlerFunction, admit_first, gpu_id, working_folder
from flambeau.items import HandlerCall
from flambeau.tasks.handler import Handled, can_be_sent
from flambeau.telemetry import logs

CSV, NPY, NPZ = "text/csv", "application/x-npy", "application/x-npz"
_TEXTS = (JSON, CSV)
_USUAL_ACCEPT = "SAGEMAKER_DEFAULT_INVOCATIONS_ACCEPT"


class _ScriptContext:
    """What a function of a script may ask for beside its arguments."""

    def __init__(self, folder: str) -> None:
        self.system_properties = {"model_dir": folder, "gpu_id": gpu_id()}
        self.model_name = "model"
        self.manifest: dict[str, Any] = {}


def open_handler(opened: Bundle, config: HandlerConfig, *, allow_code: bool) -> HandlerFunction:
    """Import the script and have it load its model. Raises `SetupError`."""
    folder = working_folder(opened)
    file = folder / Path(str(config.code.file)).relative_to(HANDLER_FILES)
    admit_first(file.parent)
    try:
        return _Script(usercode.load_module(file, allow_code=allow_code), folder)
    except SourceError:
        raise
    except Exception as error:
        logs.LOGGER.debug("%s cannot be loaded", file.name, exc_info=error)
        raise SourceError(f"the script {file.name} cannot be loaded: {type(error).__name__}: {error}") from error


class _Script:
    """A script with its model loaded."""

    def __init__(self, module: ModuleType, folder: Path) -> None:
        def own(name: str) -> Callable[..., Any] | None:
            found = getattr(module, name, None)
            return found if callable(found) else None

        self._context = _ScriptContext(str(folder))
        self._transform = own("transform_fn")
        if self._transform and (own("input_fn") or own("predict_fn") or own("output_fn")):
            raise SourceError(
                f"{module.__name__} defines transform_fn beside input_fn, predict_fn or output_fn: it takes their place"
            )
        self._input = own("input_fn") or read_input
        self._predict = own("predict_fn") or predict
        self._output = own("output_fn") or write_output
        if before := own("pre_model_fn"):
            before(str(folder))
        self._model = self._given(own("model_fn") or _load_only_file, str(folder))
        if warm := own("model_warmup_fn"):
            warm(str(folder), self._model)

    def _given(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the script, with the context if it has a parameter for it."""
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # built in, or odd: its signature cannot be read
            return function(*arguments)
        places = sum(each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD) for each in parameters)
        return function(*arguments, self._context) if places == len(arguments) + 1 else function(*arguments)

    def __call__(self, calls: Sequence[HandlerCall]) -> list[Handled]:
        return [self._answer(call) for call in calls]

    def _answer(self, call: HandlerCall) -> Handled:
        [whole] = call.parts[:1] or [None]
        if whole is None:
            raise RequestError("the request has no body", code="empty_body")
        content_type = whole.media_type or call.headers.get("content-type", JSON)
        accept = _accept(call.headers.get("accept", ""))
        body: Any = whole.data
        if content_type in _TEXTS:
            try:
                body = whole.data.decode("utf-8")
            except UnicodeDecodeError:
                raise InvalidInput(f"the body is not text in UTF-8, as {content_type} says") from None
        if self._transform is not None:
            found = self._given(self._transform, self._model, body, content_type, accept)
        else:
            data = self._given(self._input, body, content_type)
            found = self._given(self._output, self._given(self._predict, data, self._model), accept)
        if isinstance(found, tuple) and len(found) == 2:
            found, accept = found
        media_type = str(accept) if accept else BYTES
        return Handled(_bytes(found), media_type if can_be_sent("Content-Type", media_type) else BYTES)


def _accept(header: str) -> str:
    """The one type that scripts are told is wanted; `*/*` and silence leave it to the container's default."""
    import os

    first = header.partition(",")[0].partition(";")[0].strip()
    return os.environ.get(_USUAL_ACCEPT, JSON) if first in ("", "*/*", "application/*") else first


def _bytes(found: Any) -> bytes:
    if isinstance(found, bytes | bytearray | memoryview):
        return bytes(found)
    if isinstance(found, str):
        return found.encode("utf-8")
    return json.dumps(found).encode("utf-8")


def _device() -> Any:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# The defaults.


def _load_only_file(folder: str) -> Any:
    import torch

    files = [each for each in sorted(Path(folder).iterdir()) if each.suffix in (".pt", ".pth")]
    if len(files) != 1:
        raise SourceError(f"the script has no model_fn, and there are {len(files)} files .pt or .pth where one belongs")
    network = torch.jit.load(str(files[0]), map_location=_device())  # type: ignore[no-untyped-call]
    return network.eval()


def read_input(body: Any, content_type: str) -> Any:
    """JSON, CSV or npy as a tensor of float32; npy without pickle. Raises `RequestError`."""
    import numpy as np
    import torch

    try:
        if content_type == JSON:
            array = np.array(json.loads(body), np.float32)
        elif content_type == CSV:
            rows = [[float(cell) for cell in row] for row in csv.reader(io.StringIO(body)) if row]
            array = np.array(rows, np.float32)
        elif content_type == NPY:
            array = np.load(io.BytesIO(body), allow_pickle=False)
        elif content_type == NPZ:
            with np.load(io.BytesIO(body), allow_pickle=False) as several:
                array = several[several.files[0]]
        else:
            raise RequestError(
                f"{content_type} is not understood without an input_fn: send {JSON}, {CSV} or {NPY}",
                code="unsupported_media_type",
            )
    except (ValueError, TypeError, OSError, IndexError, RecursionError) as error:
        raise InvalidInput(f"the body is not {content_type} of numbers: {error}") from None
    return torch.from_numpy(np.ascontiguousarray(array)).to(_device())


def predict(data: Any, model: Any) -> Any:
    """What the model makes of a tensor."""
    import torch

    with torch.no_grad():
        if isinstance(model, torch.nn.Module):
            model.to(_device()).eval()
        return model(data)


def write_output(prediction: Any, accept: str) -> Any:
    """A tensor, an array or lists as JSON, CSV or npy. Raises `RequestError`."""
    import numpy as np

    array = prediction.detach().cpu().numpy() if hasattr(prediction, "detach") else np.asarray(prediction)
    if accept == JSON:
        return json.dumps(array.tolist())
    if accept == CSV:
        rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
        return "".join(",".join(map(str, row)) + "\n" for row in rows.tolist())
    if accept == NPY:
        written = io.BytesIO()
        np.save(written, array, allow_pickle=False)
        return written.getvalue()
    raise RequestError(
        f"{accept} is not written without an output_fn: accept {JSON}, {CSV} or {NPY}", code="unsupported_media_type"
    )
