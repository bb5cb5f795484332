"""Record a PyTorch network operation by operation while it computes a probe, to find the last operation of its output,
and the first on its input.

This works for anything callable: eager code, TorchScript, exported programs, networks that cannot be exported.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from flambeau.checkpoints import first_operation, last_operation
from flambeau.checkpoints.last_operation import UNKNOWN, Ending, Node
from flambeau.identify import naming


def run(network: Callable[..., Any], *rows: torch.Tensor) -> tuple[Any, Callable[[torch.Tensor], Ending]]:
    """What the network returns for the rows, and a function that gives the ending of any tensor in that.

    Raises what the network raises.
    """
    recorder = _Recorder()
    with recorder, torch.inference_mode():
        result = network(*rows)
    return result, recorder.ending


def of_script(network: object) -> Ending:
    """The ending of a TorchScript module, read from its graph, because frozen ones cannot be recorded. Unknown for
    other networks."""
    if not isinstance(network, torch.jit.ScriptModule):
        return UNKNOWN
    [answer, *others] = network.inlined_graph.outputs()
    return UNKNOWN if others else last_operation.of_graph(_nodes_of(network)).get(answer.debugName(), UNKNOWN)


def _nodes_of(network: torch.jit.ScriptModule) -> Iterator[Node]:
    graph: Any = network.inlined_graph
    for node in graph.nodes():
        yield Node(
            _SCRIPT_NODES.get(node.kind(), node.kind().partition("::")[2]).removesuffix("_"),
            tuple(each.debugName() for each in node.inputs()),
            tuple(each.debugName() for each in node.outputs()),
        )


def scales(network: Callable[..., Any], rows: torch.Tensor) -> bool:
    """Whether the network begins by scaling the rows with constants, even if it cannot compute them to its end."""
    operations = _Operations(rows)
    with contextlib.suppress(Exception), operations, torch.inference_mode():  # a frozen script cannot be recorded
        network(rows)
    if operations.nodes:
        return first_operation.scales(operations.nodes, ("input",))
    if not isinstance(network, torch.jit.ScriptModule):
        return False
    return first_operation.scales(_nodes_of(network), [each.debugName() for each in network.inlined_graph.inputs()][1:])


def reads_numbers(network: Callable[..., Any], *rows: torch.Tensor) -> bool:
    """Whether Python, or a script, is given numbers that were computed of the rows, as in `if rows.max() > 1`.

    A script is not run, because its interpreter reads them where no recorder sees it.
    """
    if isinstance(network, torch.jit.ScriptModule):
        graph: Any = network.inlined_graph
        return _script_reads(graph, {each.debugName() for each in [*graph.inputs()][1:]})
    reader = _NumberReads(rows)
    with contextlib.suppress(Exception), reader, torch.inference_mode():
        network(*rows)
    return reader.read


def _script_reads(block: Any, of_rows: set[str]) -> bool:
    """The same of a block of a script, in which the values `of_rows` were computed of the rows. Adds to them."""
    for node in block.nodes():
        operation = node.kind().partition("::")[2]
        if any(each.debugName() in of_rows for each in node.inputs()) and operation not in _OF_SHAPES:
            if operation in _SCRIPT_READS:
                return True
            of_rows |= {each.debugName() for each in node.outputs()}
        if any(_script_reads(inner, of_rows) for inner in node.blocks()):
            return True
    return False


_OF_SHAPES = frozenset({"size", "len", "dim", "numel", "dtype", "device", "layout", "is_cuda", "requires_grad"})
_SCRIPT_READS = frozenset({"Bool", "item", "is_nonzero", "equal", "FloatImplicit", "IntImplicit", "ScalarImplicit"})
_SCRIPT_NODES = {"prim::Constant": "Constant", "prim::GetAttr": "Constant", "prim::ListConstruct": "cat"}


def head_taken_off(network: Callable[..., Any], *rows: torch.Tensor, after: Ending) -> str | None:
    """The name of the `nn.Identity` that replaced the head, as in `fc = nn.Identity()`: the last layer called.

    `None` without one. It counts only where it is named like a head, or follows an ending (`after`) that suggests
    features: an omitted activation may be an `nn.Identity` too.
    """
    if not isinstance(network, nn.Module):
        return None
    last: list[str] = []
    hooks = []
    for name, module in network.named_modules():
        if name and not any(True for _ in module.children()) and not isinstance(module, torch.jit.ScriptModule):
            hooks.append(module.register_forward_hook(lambda *_, name=name: last.append(name)))
    try:
        with torch.inference_mode():
            network(*rows)
    finally:
        for hook in hooks:
            hook.remove()
    if not last or not isinstance(network.get_submodule(last[-1]), nn.Identity):
        return None
    named = naming.is_head(f"{last[-1]}.weight")
    return last[-1] if named or after.kind in ("features", "other") else None


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type how subclasses are made
    """Records the ending of every tensor, without keeping any tensor alive.

    Writing in place through a view changes its base too: `y[:, 1:].sigmoid_()` changes part of `y`. So the last write
    to each storage is recorded as well, and counts for all older tensors in it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._endings: MutableMapping[torch.Tensor, tuple[int, Ending]] = WeakTensorKeyDictionary()
        self._written: dict[int, tuple[int, Ending]] = {}
        self._clock = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._clock += 1
        plain, in_place = _operation(func)
        given = [self._known(each) for each in _tensors(args)]
        for tensor in _tensors(result):
            spatial = any(size != 1 for size in tensor.shape[2:])
            ending = last_operation.ending(plain, given, spatial=spatial)
            if in_place and (storage := _storage(tensor)) is not None:
                whole = tensor.numel() * tensor.element_size() >= tensor.untyped_storage().nbytes()
                self._written[storage] = (self._clock, ending if whole else last_operation.PARTLY)
            self._endings[tensor] = (self._clock, ending)
        return result

    def ending(self, tensor: torch.Tensor) -> Ending:
        """The ending of a tensor."""
        return self._known(tensor) or UNKNOWN

    def _known(self, tensor: torch.Tensor) -> Ending | None:
        """The ending of a tensor; `None` for a constant or an input."""
        made, ending = self._endings.get(tensor, (0, None))
        storage = _storage(tensor)
        written, of_write = (0, None) if storage is None else self._written.get(storage, (0, None))
        return of_write if written > made else ending


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the first operations, up to `MOST`, as nodes of a graph. The rows are its value `input`."""

    MOST = 500

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self._names: MutableMapping[torch.Tensor, str] = WeakTensorKeyDictionary()
        self._names[rows] = "input"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tuple(self._names[each] for each in _tensors(args) if each in self._names)
        result = func(*args, **(kwargs or {}))
        if given and len(self.nodes) < self.MOST:
            made = f"made {len(self.nodes)}"
            for tensor in _tensors(result):
                self._names[tensor] = made
            self.nodes.append(Node(_operation(func)[0], given, (made,)))
        return result


class _NumberReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices when a number that was computed of the rows leaves the tensors."""

    _READS = frozenset({"_local_scalar_dense", "equal", "is_nonzero"})

    def __init__(self, rows: Iterable[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read = False
        self._made: MutableMapping[torch.Tensor, bool] = WeakTensorKeyDictionary()
        self._written: set[int] = set()
        for each in rows:
            self._made[each] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_rows = any(each in self._made or _storage(each) in self._written for each in _tensors(args))
        result = func(*args, **(kwargs or {}))
        operation, in_place = _operation(func)
        if of_rows:
            self.read = self.read or operation in self._READS
            for tensor in _tensors(result):
                self._made[tensor] = True
                if in_place and (storage := _storage(tensor)) is not None:
                    self._written.add(storage)
        return result


def _operation(func: Any) -> tuple[str, bool]:
    """The name of an operation without its overload, and whether it writes in place; `relu_` does what `relu` does."""
    operation = func.name().partition("::")[2].partition(".")[0]
    in_place = operation.endswith("_") and not operation.startswith("_")
    return (operation.rstrip("_") if in_place else operation), in_place


def _storage(tensor: torch.Tensor) -> int | None:
    """The address of the tensor's memory; `None` where it has none, or torch does not say."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (NotImplementedError, RuntimeError):  # sparse and others
        return None


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among arguments or results, which are nested at most once."""
    if isinstance(values, torch.Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for each in values:
            if isinstance(each, torch.Tensor):
                yield each
            elif isinstance(each, list | tuple):
                yield from (inner for inner in each if isinstance(inner, torch.Tensor))
