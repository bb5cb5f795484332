"""Flambeau as a Ray Serve application: `flambeau.ray.app("/shared/cats", replicas=4)`, for `serve.run`.

    Serve's proxy on each node  ->  Front, at most one on a node (queue, ledger, batches)  ->  replicas, anywhere

A front is an ASGI application in a Serve replica, and has replicas of the runner `ray` for itself. Ray is imported
when an application is made, and not before. Only Ray's public names are used.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flambeau.errors import ConfigError, EngineError
from flambeau.grpc.inference_proto import HEALTH_SERVICE, INFERENCE_CALLS, INFERENCE_SERVICE

if TYPE_CHECKING:
    from flambeau.grpc.proxied import ProxiedCall
    from flambeau.http.asgi import AsgiApp

_MOST_OPEN = 1024  # requests that Serve hands to a front; its own queue refuses what is too much
_DRAIN = 30.0  # seconds, as --drain-timeout
_AHEAD = 16  # answers of a stream that wait for their client to read them

_STREAM = "ModelStreamInfer"


def app(source: str | None = None, *, fronts: int = 1, **options: Any) -> Any:
    """A Ray Serve application that serves a model: `serve.run(flambeau.ray.app("/shared/cats"), route_prefix="/")`.

    `source` is the path of a bundle or a repository on every node that may have a front. `fronts` is how many there
    are, at most one on each node; each has `replicas` of its own. The `options` are those of `flambeau.create_app`.
    Raises `SetupError`.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise EngineError(f"a Ray Serve application needs Ray Serve ({error}): pip install 'ray[serve]'") from None
    if fronts < 1:
        raise ConfigError(f"fronts {fronts} is too small: the least is 1")
    made: list[AsgiApp] = []  # that of a front, in its own process
    front = serve.ingress(_maker(source, {"runner": "ray", **options}, made))(_front(made))
    deployment = serve.deployment(
        front,
        name="Front",
        num_replicas=fronts,
        max_replicas_per_node=1,
        max_ongoing_requests=_MOST_OPEN,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=float(options.get("drain_timeout", _DRAIN)) + 5,
        logging_config={"enable_access_log": False},
    )
    return deployment.bind()


def build(args: dict[str, Any]) -> Any:
    """The same from the `args` of a Serve configuration file: `import_path: flambeau.ray:build`."""
    return app(**args)


def add_grpc_services(servicer: Any, server: Any) -> None:
    """Have Serve's proxy take the calls of the inference protocol, and of health checks, as gRPC's generated code does.

    Messages stay the bytes that they are. Serve pickles what its proxy has read, and classes of messages that are made
    at run time cannot be found again by their names.
    """
    import grpc

    from flambeau.grpc import descriptors

    descriptors.publish()  # Serve answers reflection itself
    one, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
    inference = {name: one(getattr(servicer, name)) for name in INFERENCE_CALLS}
    for service, methods in (
        (INFERENCE_SERVICE, inference | {_STREAM: stream(getattr(servicer, _STREAM))}),
        (HEALTH_SERVICE, {"Check": one(servicer.Check)}),
    ):
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))


def _maker(source: str | None, options: dict[str, Any], made: "list[AsgiApp]") -> Callable[[], Any]:
    def make_front() -> Any:  # it runs on the front's node
        from flambeau.http.asgi import create_asgi_app
        from flambeau.telemetry import logs

        logs.configure(options.get("log_level", "info"))
        made.append(create_asgi_app(source, **options))
        return made[0]

    return make_front


def _front(made: "list[AsgiApp]") -> type:
    """The class of a front, with a method for each call of gRPC: Serve finds them by their names."""

    def one(name: str) -> Callable[..., Awaitable[_ReadyAnswer]]:
        async def answer(self: object, message: bytes, grpc_context: Any) -> _ReadyAnswer:
            from flambeau.grpc.proxied import ProxiedCall, of_one

            call = ProxiedCall(grpc_context.peer(), grpc_context.invocation_metadata(), read=of_one(message))
            answered = await made[0].answer_call(name, call)
            _end(call, grpc_context)
            return _ReadyAnswer(answered)

        return answer

    methods: dict[str, Any] = {name: one(name) for name in (*INFERENCE_CALLS, "Check")}
    methods[_STREAM] = _streaming(made)
    return type("Front", (), methods)


def _streaming(made: "list[AsgiApp]") -> Callable[..., AsyncIterator["_ReadyAnswer"]]:
    async def answer(self: object, messages: Any, grpc_context: Any) -> AsyncIterator[_ReadyAnswer]:
        """The service reads and writes on its own loop; the stream is of Serve's."""
        from flambeau.grpc.proxied import ProxiedCall

        loop = asyncio.get_running_loop()
        written: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)

        async def next_message() -> bytes | None:
            message: bytes | None = await anext(messages, None)
            return message

        async def read() -> bytes | None:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(next_message(), loop))

        async def write(message: bytes) -> None:
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(written.put(message), loop))

        async def converse() -> None:
            try:
                await made[0].answer_call(_STREAM, call)
            finally:
                await written.put(None)

        call = ProxiedCall(grpc_context.peer(), grpc_context.invocation_metadata(), read=read, write=write)
        conversation = asyncio.ensure_future(converse())
        try:
            while (message := await written.get()) is not None:
                yield _ReadyAnswer(message)
            await conversation
        finally:
            conversation.cancel()
        _end(call, grpc_context)

    return answer


@dataclass(frozen=True, slots=True)
class _ReadyAnswer:
    """An answer that is bytes already; Serve asks each for its own."""

    raw: bytes

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.raw


def _end(call: "ProxiedCall", grpc_context: Any) -> None:
    """Tell Serve the call's status. What is raised would lose the trailing metadata, with our code of the error."""
    if call.status:
        import grpc

        grpc_context.set_code(next(each for each in grpc.StatusCode if each.value[0] == call.status))
        grpc_context.set_details(call.details)
    if call.trailing:
        grpc_context.set_trailing_metadata(call.trailing)
