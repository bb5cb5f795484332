"""What a global could have done, for the sentence that refuses it. What is not in it is not allowed for that.

What stands in this table is refused even with `--allow-code`, for no network needs it.
"""


def _table(text: str) -> dict[str, str]:
    """What could be done, by name, from lines that say so, each with the names below it."""
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
    """What the global could have done, in a few words that read on from "could"; empty for one that is not known."""
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
