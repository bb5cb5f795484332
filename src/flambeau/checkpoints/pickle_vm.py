"""A pickle machine that runs a pickle's operations but only makes descriptions of its objects.

It follows `torch.load(weights_only=True)` step by step: what that would refuse is refused or noted here. It never
imports what a pickle names, and a budget bounds its operations and the data they touch.
"""

import io
import pickletools
import warnings
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flambeau.checkpoints import reduce_calls
from flambeau.checkpoints.allowlist import ALLOWED, NAMESPACE, UNHOLDABLE
from flambeau.checkpoints.pickle_stack import Foreign, Named, PlainObject, Stack, kind
from flambeau.checkpoints.report import DOWNLOAD_AGAIN, MOST_OPERATIONS, ScanBudget, ScanError

MOST_BYTES = 32 * 2**20
"""The largest pickle that is read. A tensor takes about 150 bytes of it."""

_MOST_NAMES = 10_000
_LONGEST_NAME = 1000
"""Characters of a global's name, including its module."""

OfStorage = Callable[[Any], Any]
"""Maps a persistent id to its storage. Raises `ScanError`."""


@dataclass(slots=True)
class Pickled:
    """What a pickle describes.

    `globals` are all the names it reached, and whether each is allowed. `fault` says why the machine stopped early;
    `value` is then `None`. `oddity` is the first thing that weights never have but a whole module may: the machine went
    on. `beyond` is the first operation that torch does not read in weights. `end` is the offset after the pickle.
    `budget` is what is left for processing the value.
    """

    value: Any
    globals: dict[str, bool]
    fault: ScanError | None
    oddity: ScanError | None
    beyond: str | None
    end: int
    budget: ScanBudget

    @property
    def foreign(self) -> list[str]:
        """The globals that are not allowed, in order of appearance."""
        return [name for name, harmless in self.globals.items() if not harmless]


def read(
    data: bytes, *, start: int = 0, of_storage: OfStorage | None = None, budget: ScanBudget | None = None
) -> Pickled:
    """Run the pickle that begins at `start`. Never raises: for a damaged or hostile one, `fault` is set.

    Several pickles in one file share one `budget`.
    """
    machine = _Machine(of_storage, budget or ScanBudget())
    fault = None
    try:
        machine.play(data, start)
    except ScanError as refusal:
        fault = refusal
    except (ValueError, IndexError, KeyError, OverflowError):
        # genops met an invalid operation, or an operation did not find what it needs on the stack or in the memo
        fault = ScanError("holds a pickle that is damaged or cut short", DOWNLOAD_AGAIN)
    return Pickled(machine.value, machine.globals, fault, machine.oddity, machine.beyond, machine.end, machine.budget)


class _Machine(Stack):
    def __init__(self, of_storage: OfStorage | None, budget: ScanBudget) -> None:
        super().__init__(budget)
        self.globals: dict[str, bool] = {}
        self.beyond: str | None = None
        self.end = 0
        self._of_storage = of_storage

    def play(self, data: bytes, start: int) -> None:
        stream = io.BytesIO(data)
        stream.seek(start)
        steps = _OPERATIONS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bad escape in a string does not matter here
            for opcode, argument, position in pickletools.genops(stream):
                self.budget.operations -= 1
                if self.budget.operations < 0:
                    raise ScanError(f"holds a pickle of more than {MOST_OPERATIONS:,} operations, too many for weights")
                name = opcode.name
                if name in ("GLOBAL", "INST") and b"\\" in data[position : stream.tell()]:
                    # pickletools decodes an escape here, and the unpicklers do not: they would see different names
                    raise ScanError("names a global with escape signs in it, to hide which it is")
                step = steps.get(name)
                if step is None:
                    raise ScanError(f"holds a pickle with the operation {name}, which torch.save never writes")
                if name not in _OF_TORCH:
                    self.beyond = self.beyond or name
                step(self, argument)
        self.end = stream.tell()

    def global_(self, argument: str) -> None:
        """GLOBAL. pickletools joins its two lines with a blank, and a module's name contains no blank."""
        module, _, name = argument.partition(" ")
        self._stack.append(self._named(module, name))

    def stack_global(self, _: None) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ScanError("names a global by something other than two strings (STACK_GLOBAL), to hide which it is")
        self._stack.append(self._named(module, name))

    def extension(self, code: int) -> None:
        raise ScanError(f"asks for an object by the extension code {code} (EXT), which hides what it calls")

    def _named(self, module: str, name: str) -> Named:
        if len(module) + len(name) > _LONGEST_NAME:
            raise ScanError(f"names a global by {len(module) + len(name):,} characters, more than any name has")
        if (module, name) in NAME_MAPPING:  # protocol 2 uses the names of Python 2
            module, name = NAME_MAPPING[module, name]
        else:
            module = IMPORT_MAPPING.get(module, module)
        if len(self.globals) == _MOST_NAMES:
            raise ScanError(f"names more than {_MOST_NAMES:,} globals, which no model does")
        full = f"{module}.{name}"
        harmless = full in ALLOWED or full in UNHOLDABLE
        self.globals[full] = harmless
        return Named(full, harmless)

    def reduce(self, _: None) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(self._made(function, arguments))

    def new(self, _: None) -> None:
        arguments, made = self._stack.pop(), self._stack.pop()
        if isinstance(made, Named) and made.harmless and made.name not in _MADE_ANEW:
            self.odd(ScanError(f"makes a {made.name} in a way that torch.save does not write (NEWOBJ)"))
        self._stack.append(self._made(made, arguments))

    def new_with_keywords(self, _: None) -> None:
        self._stack.pop()
        self.new(None)

    def instance(self, argument: str) -> None:
        """INST: the operation names the class, and its arguments are above the mark."""
        self.pop_mark()
        module, _, name = argument.partition(" ")
        self._stack.append(self._made(self._named(module, name), None))

    def object_(self, _: None) -> None:
        items = self.pop_mark()
        self._stack.append(self._made(items[0], None))

    def _made(self, function: Any, arguments: Any) -> Any:
        self.budget.charge_for_each(arguments)  # outside the try: exceeding the budget is a fault, not an oddity
        if isinstance(function, Named) and function.harmless:
            try:
                return reduce_calls.call(function.name, arguments)
            except ScanError as refusal:
                self.odd(refusal)
        if isinstance(function, Named | Foreign):
            if function.name == "copyreg._reconstructor" and type(arguments) is tuple and arguments:
                function = arguments[0] if isinstance(arguments[0], Named) else function  # protocols 0 and 1
            return Foreign(function.name)
        raise ScanError(f"calls {kind(function)} as if it were a function")

    def build(self, _: None) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Foreign):
            target.state = state
        else:
            self.budget.charge_for(state)
            try:
                reduce_calls.build(target, state)
            except ScanError as refusal:
                self.odd(refusal)

    def persistent(self, _: None) -> None:
        identity = self._stack.pop()
        if self._of_storage is None:
            raise ScanError("asks for a persistent object that is not a storage of tensors")
        self.budget.charge_for_each(identity)
        try:
            self._stack.append(self._of_storage(identity))
        except ScanError as refusal:
            self.odd(refusal)
            self._stack.append(Foreign("torch.storage"))

    def persistent_text(self, argument: str) -> None:
        raise ScanError("asks for a persistent object by its text (PERSID), which torch.save never writes")


_MADE_ANEW = ("collections.OrderedDict", NAMESPACE)
"""The classes that `torch.save` creates objects of with NEWOBJ."""

_OF_TORCH = {
    "APPEND", "APPENDS", "BINFLOAT", "BINGET", "BININT", "BININT1", "BININT2", "BINPERSID", "BINPUT", "BINUNICODE",
    "BUILD", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET", "EMPTY_TUPLE", "GLOBAL", "LONG1", "LONG_BINGET", "LONG_BINPUT",
    "MARK", "NEWFALSE", "NEWOBJ", "NEWTRUE", "NONE", "PROTO", "REDUCE", "SETITEM", "SETITEMS", "SHORT_BINSTRING",
    "STOP", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
}  # fmt: skip
"""The operations that `torch.load(weights_only=True)` knows."""

_PickleOperation = Callable[[_Machine, Any], Any]


def _constant(value: Any) -> _PickleOperation:
    return lambda machine, _: machine.push(value)


def _fresh(make: Callable[[], Any]) -> _PickleOperation:
    return lambda machine, _: machine.push(make())


def _tuple_of(count: int) -> _PickleOperation:
    return lambda machine, _: machine.tuple_of(count)


_OPERATIONS: dict[str, _PickleOperation] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), _Machine.push),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), _Machine.push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Machine.text),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _Machine.old_text),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    **dict.fromkeys(("PROTO", "FRAME"), _Machine.nothing),
    "NONE": _constant(None), "NEWTRUE": _constant(True), "NEWFALSE": _constant(False), "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": _fresh(list), "EMPTY_DICT": _fresh(dict), "EMPTY_SET": _fresh(lambda: PlainObject("set")),
    "BYTEARRAY8": _fresh(lambda: PlainObject("bytearray")),
    "TUPLE": _Machine.tuple_, "TUPLE1": _tuple_of(1), "TUPLE2": _tuple_of(2), "TUPLE3": _tuple_of(3),
    "LIST": _Machine.list_, "DICT": _Machine.dict_, "FROZENSET": _Machine.frozenset_, "ADDITEMS": _Machine.add_items,
    "APPEND": _Machine.append, "APPENDS": _Machine.appends, "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "MARK": _Machine.mark, "POP": _Machine.pop, "POP_MARK": _Machine.pop_mark, "DUP": _Machine.dup,
    "MEMOIZE": _Machine.memoize, "STOP": _Machine.stop,
    "GLOBAL": _Machine.global_, "STACK_GLOBAL": _Machine.stack_global, "INST": _Machine.instance,
    "OBJ": _Machine.object_, "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.new,
    "NEWOBJ_EX": _Machine.new_with_keywords, "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent, "PERSID": _Machine.persistent_text,
}  # fmt: skip
