"""The throw-away process that opens an untrusted ONNX graph: `python -m flambeau.builder.sandbox.onnx_graph REQUEST`

Inside the sandbox of `flambeau.builder.sandbox.lockdown` it checks the graph, lets ONNX Runtime optimise it (which
evaluates its constants) and computes one row. If the graph loops for ever, or asks for more memory than the machine
has, only this process dies. The reply, on standard output, is a `Read` or a `ReadRefused`.
"""

import os
import signal
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper

from flambeau import checkpoints
from flambeau.builder.sandbox import GraphInput, GraphRequest, Read, ReaderMessage, ReadRefused, lockdown, row_in_words
from flambeau.engines.onnxruntime import open_session
from flambeau.system.process import end_with_parent


def main() -> int:
    """Open one graph. Returns the exit code."""
    request = msgspec.json.decode(sys.argv[1], type=GraphRequest)
    end_with_parent(request.parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def say(message: ReaderMessage) -> None:
        channel.write(msgspec.json.encode(message) + b"\n")

    file = Path(request.source)
    foreign = ""
    try:
        foreign = checkpoints.examine(file).facts.get("operators of others", "")
        _preload()
        opened = [os.open(path, os.O_RDONLY) for path in (file, *checkpoints.files_beside(file))]
        os.dup2(1, 2)  # discard standard error: from here on the graph may control what is printed
        limits = lockdown.Limits(
            memory=request.memory, file_bytes=0, cpu_seconds=request.cpu_seconds, open_files=len(opened) + 32
        )
        held = lockdown.enter(limits, readable=opened)
        _compute(file, request)
    except MemoryError:
        say(ReadRefused(_too_large(file, request)))
    except Exception as error:  # onnx, protobuf and ONNX Runtime each have their own exception types
        say(ReadRefused(_why(str(error).strip(), file, request, foreign)))
    else:
        say(Read(str(held)))
    return 0


def _why(text: str, file: Path, request: GraphRequest, foreign: str) -> str:
    """The message for the user. `text` is the error's own; `foreign` are the operators that ONNX does not define."""
    if any(words in text.lower() for words in ("bad_alloc", "bad allocation", "failed to allocate")):
        return _too_large(file, request)
    if foreign and ("not a registered" in text or "No Op registered" in text or "No opset import" in text):
        return (
            f"{file.name} uses operators that are not ONNX's own ({foreign}), and ONNX Runtime lacks one of them: "
            "export it without custom operators, or serve it as a Python model that loads their library"
        )
    return f"{file.name} is not an ONNX model that can be run: {text}"


def _too_large(file: Path, request: GraphRequest) -> str:
    return (
        f"{file.name} asks for more than {request.memory / 1e9:.1f} GB to compute {row_in_words(request)}: "
        "a graph of its size needs less"
    )


def _preload() -> None:
    """Check, open and run a small graph, so that everything this needs is loaded."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    answered = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    made = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "preload", [given], [answered])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    open_session(model.SerializeToString(), threads=1).run(None, {"x": _numbers(GraphInput("float32", (1, 2)))})


def _numbers(wanted: GraphInput) -> np.ndarray:
    """Numbers that the graph's author cannot predict, unless the graph itself names one. Integers are 0 and 1, valid
    indices in every embedding table."""
    if wanted.numbers:
        return np.full(wanted.shape, wanted.numbers[0], wanted.dtype)
    if np.dtype(wanted.dtype).kind in "iub":
        return np.random.default_rng().integers(0, 2, wanted.shape).astype(wanted.dtype)
    return np.random.default_rng().standard_normal(wanted.shape, dtype=np.float32).astype(wanted.dtype, copy=False)


def _compute(file: Path, request: GraphRequest) -> None:
    onnx.checker.check_model(onnx.load(file, format="protobuf"))
    open_session(file, threads=1).run(None, {name: _numbers(each) for name, each in request.inputs.items()})


if __name__ == "__main__":
    sys.exit(main())
