"""The globals that a pickle of weights may name. This list alone decides (T-03).

They are those that `torch.load(weights_only=True)` allows and `torch.save` writes for plain tensors, and those of
values that training scripts keep beside the weights: numpy scalars such as the best accuracy, command line arguments,
paths. `reduce_calls` defines the result of calling each.
"""

import importlib
from typing import Any

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
"""Bytes per element, by torch's name for the dtype."""

STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in {
        "Bool": "bool", "Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64",
        "Half": "float16", "BFloat16": "bfloat16", "Float": "float32", "Double": "float64",
        "ComplexFloat": "complex64", "ComplexDouble": "complex128",
    }.items()
} | {"torch.storage.UntypedStorage": "uint8"}  # fmt: skip
"""The dtype of a storage's elements, by the storage's class."""

DTYPES = {f"torch.{name}" for name in ITEM_SIZES}

CALLABLE = {
    "_codecs.encode",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "collections.Counter",
    "collections.OrderedDict",
    "torch.Size",
    "torch._tensor._rebuild_from_type_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.device",
}

NAMED_ONLY = {"torch.Tensor", "torch.nn.parameter.Parameter", "torch.storage.TypedStorage"}
"""Classes that may be named but not called: `torch.Tensor(10**12)` allocates."""

PATHS = {
    f"{module}.{kind}": f"pathlib.Pure{kind.removeprefix('Pure')}"
    for module in ("pathlib", "pathlib._local")  # where Python 3.13 has them
    for kind in ("PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath")
}
"""Path classes as files name them, and what they become here: pure paths, on any system, which touch no file."""

NAMESPACE = "argparse.Namespace"
"""The arguments of a training script: attributes with values, without code of its own."""

BESIDE = {
    "numpy.core.multiarray.scalar": "numpy._core.multiarray.scalar",
    "numpy._core.multiarray.scalar": "numpy._core.multiarray.scalar",
    "numpy.dtype": "numpy.dtype",
    NAMESPACE: NAMESPACE,
    **PATHS,
}
"""The globals that torch does not allow by itself, as files name them, and where they are found here."""

_NUMPY_DTYPES = (
    "BoolDType", "Int8DType", "UInt8DType", "Int16DType", "UInt16DType", "Int32DType", "UInt32DType", "Int64DType",
    "UInt64DType", "Float16DType", "Float32DType", "Float64DType", "Complex64DType", "Complex128DType",
)  # fmt: skip

ALLOWED = frozenset(CALLABLE | NAMED_ONLY | DTYPES | set(STORAGES) | set(BESIDE))

UNHOLDABLE = {
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without contents, of the device meta",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_qtensor": "a quantised tensor",
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of a subclass that wraps others",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of a device that torch does not store",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of a device that torch does not store",
}
"""What torch would read safely too, but a bundle cannot hold."""


def permitted_globals() -> list[tuple[Any, str]]:
    """The objects of `BESIDE` with their names, as `torch.serialization.safe_globals` takes them.

    numpy's dtype classes are included, though no file names them: torch checks the type of an object that it fills.
    """
    found = [(_resolve(place), name) for name, place in BESIDE.items()]
    return found + [(_resolve(f"numpy.dtypes.{name}"), f"numpy.dtypes.{name}") for name in _NUMPY_DTYPES]


def _resolve(place: str) -> Any:
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)


# What a global could have done, for the message that refuses it. A global that is missing here is not thereby allowed;
# one that is listed is refused even with `--allow-code`, because no network needs it.


def _table(text: str) -> dict[str, str]:
    """Parse lines that end with a colon, each followed by names, into name -> line."""
    found: dict[str, str] = {}
    could = ""
    for line in text.splitlines():
        if line.endswith(":"):
            could = line.strip().removesuffix(":")
        else:
            found |= dict.fromkeys(line.split(), could)
    return found


_GLOBALS = _table(
    """
    run any command of this machine:
        os.system os.popen posix.system nt.system os.execv os.execve os.execl os.execlp os.execvp os.spawnl
        os.spawnv os.spawnlp os.spawnvp os.posix_spawn os.startfile posix.execv posix.fork pty.spawn
        platform.popen torch.utils.collect_env.run torch.multiprocessing.spawn distutils.spawn.spawn
        setuptools.sandbox.run_setup distutils.core.run_setup idlelib.pyshell.ModifiedInterpreter
        asyncio.create_subprocess_exec asyncio.create_subprocess_shell _posixsubprocess.fork_exec
    run any Python code:
        builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.breakpoint builtins.help
        builtins.input builtins.__build_class__ types.CodeType types.FunctionType codeop.compile_command
        torch.hub.load torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline torch.jit.load
        torch.package.PackageImporter torch.fx.graph_module.reduce_graph_module
        torch.fx.graph_module._forward_from_src torch._dynamo.guards.GuardBuilder.get torch.compile
        torch._inductor.codecache.compile_file torch.jit.unsupported_tensor_ops.execWrapper
        torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
        torch.utils.bottleneck.__main__.run_cprofile torch.utils.bottleneck.__main__.run_autograd_prof
        torch.distributed.rpc.rpc_sync numpy.testing._private.utils.runstring numpy.testing.runstring
        numpy.f2py.crackfortran.getlincoef numpy.f2py.crackfortran.myeval numpy.f2py.crackfortran.param_eval
        numpy.f2py.crackfortran._eval_length pydoc.locate pydoc.pipepager cgitb.lookup trace.Trace.run
        trace.Trace.runctx logging.config.listen site.addpackage site.addsitedir doctest.debug_script
        ensurepip._run_pip
    unpickle anything, and so run any code:
        pickle.load pickle.loads pickle.Unpickler _pickle.load _pickle.loads _pickle.Unpickler dill.load
        dill.loads cloudpickle.load cloudpickle.loads joblib.load torch.load torch.serialization.load numpy.load
        torch.storage._load_from_bytes torch.utils._config_module.ConfigModule.load_config
        torch.utils._config_module.load_config pandas.read_pickle pandas.io.pickle.read_pickle marshal.loads
        marshal.load shelve.open multiprocessing.reduction.ForkingPickler.loads copyreg.add_extension
    read, change or delete files:
        builtins.open io.open io.FileIO _io.open _io.FileIO io.open_code codecs.open pathlib.Path.write_text
        pathlib.Path.unlink numpy.save numpy.savetxt numpy.memmap numpy.fromfile torch.save torch.from_file
        linecache.getlines fileinput.input mmap.mmap zipfile.ZipFile tarfile.open logging.FileHandler
    reach any function, whatever it is called here:
        builtins.getattr builtins.setattr builtins.delattr builtins.globals builtins.locals builtins.vars
        builtins.dir builtins.map builtins.filter builtins.apply builtins.type builtins.super
        operator.attrgetter operator.methodcaller operator.itemgetter operator.getitem _operator.attrgetter
        _operator.methodcaller _operator.itemgetter functools.partial functools.reduce functools.partialmethod
        functools.singledispatch _functools.partial _functools.reduce itertools.starmap types.MethodType
        inspect.getattr_static numpy.vectorize numpy.apply_along_axis builtins.object.__getattribute__
        builtins.classmethod weakref.finalize contextlib.ExitStack
    """
)

_MODULES = _table(
    """
    run any command of this machine:
        subprocess commands posix nt pty os popen2 pexpect sh plumbum fabric invoke
    run any Python code:
        runpy code codeop bdb pdb timeit profile cProfile trace doctest imp importlib _imp zipimport pkgutil
        _frozen_importlib _frozen_importlib_external pip setuptools distutils ensurepip venv pydoc idlelib
        lib2to3 ctypes _ctypes cffi pickle _pickle pickletools dill cloudpickle marshal shelve sys atexit signal
        asyncio threading _thread multiprocessing webbrowser IPython torch.distributed.rpc
        torch.utils.cpp_extension torch.package torch._inductor
    read, change or delete files:
        shutil tempfile glob fileinput sqlite3 dbm zipfile tarfile linecache mmap fcntl
    talk to other machines:
        socket _socket socketserver ssl _ssl http urllib urllib2 urllib3 httplib ftplib telnetlib smtplib poplib
        imaplib nntplib xmlrpc requests aiohttp httpx paramiko select selectors wsgiref
    reach any function, whatever it is called here:
        operator _operator inspect
    """
)

_MOST_PARTS = max(name.count(".") + 1 for name in _MODULES)

_MODULES_THAT_MATTER_WITHIN = ("os", "posix", "nt", "sys", "subprocess", "socket", "shutil", "runpy", "importlib")


def danger(name: str) -> str:
    """What the global could have done, as a short phrase that follows "could"; empty for an unlisted one."""
    if name in _GLOBALS:
        return _GLOBALS[name]
    parts = name.split(".")
    for end in range(min(len(parts) - 1, _MOST_PARTS), 0, -1):
        if found := _MODULES.get(".".join(parts[:end])):
            return found
    for place, part in enumerate(parts[1:-1], start=1):  # torch.serialization.os.system is os.system
        if part in _MODULES_THAT_MATTER_WITHIN:
            return _GLOBALS.get(".".join(parts[place:])) or _MODULES[part]
    return ""
