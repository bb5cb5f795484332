"""Makes the messages' classes of the protocol's text, when it is imported.

No code is generated beforehand: generated code runs only with a protobuf of the same or the next major version, and
this with all that have `google.protobuf.message_factory.GetMessageClass`. The descriptors lie in a pool of their own,
because a process that also holds a client of the protocol has its messages, under the same names, in the default one.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, empty_pb2, message_factory

from flambeau.grpc.inference_proto import (
    HEALTH,
    HEALTH_ENUMS,
    HEALTH_SERVICE,
    INFERENCE,
    INFERENCE_CALLS,
    INFERENCE_ENUMS,
    INFERENCE_SERVICE,
    REFLECTION,
    MessageFields,
)
from flambeau.grpc.torchserve_proto import (
    TORCHSERVE_INFERENCE,
    TORCHSERVE_INFERENCE_CALLS,
    TORCHSERVE_MANAGEMENT,
    TORCHSERVE_MANAGEMENT_CALLS,
)

TORCHSERVE_PACKAGE, MANAGEMENT_PACKAGE = "org.pytorch.serve.grpc.inference", "org.pytorch.serve.grpc.management"
TORCHSERVE_SERVICE = f"{TORCHSERVE_PACKAGE}.InferenceAPIsService"
MANAGEMENT_SERVICE = f"{MANAGEMENT_PACKAGE}.ManagementAPIsService"

_STATUS: MessageFields = {"Status": "int32 code = 1; string message = 2; repeated .google.protobuf.Any details = 3"}
"""What `google/rpc/status.proto` has, which comes with no package of ours."""

REFLECTIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")
"""The packages of reflection: its messages are the same under both names. Newer clients first ask for `v1`."""

_FIELD = re.compile(
    r"(?:oneof (?P<oneof>\w+) )?(?P<repeated>repeated )?"
    r"(?:map<string, (?P<value>[\w.]+)>|(?P<enum>enum )?(?P<type>[\w.]+)) (?P<name>\w+) = (?P<number>\d+)"
)
_Field: Any = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "bytes", "double", "float", "int32", "int64", "string", "uint32", "uint64")
}


def _file(
    name: str,
    package: str,
    messages: MessageFields,
    enums: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    *,
    needs: Iterable[str] = (),
) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of a `.proto` file. `needs`: the names of those it imports."""
    made = descriptor_pb2.FileDescriptorProto(name=name, package=package, syntax="proto3", dependency=needs)
    found: dict[str, Any] = {}
    for path, fields in messages.items():
        outer, _, own = path.rpartition(".")
        message = found[outer].nested_type.add(name=own) if outer else made.message_type.add(name=own)
        found[path] = message
        for text in filter(None, (each.strip() for each in fields.split(";"))):
            _add_field(message, f".{package}.{path}", f".{package}.", text)
    for path, values in enums.items():
        outer, _, own = path.rpartition(".")
        enum = found[outer].enum_type.add(name=own) if outer else made.enum_type.add(name=own)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    return made


def _add_field(message: Any, path: str, package: str, text: str) -> None:
    matched = _FIELD.fullmatch(text)
    assert matched is not None, text
    name, kind = matched["name"], matched["type"]
    field = message.field.add(name=name, number=int(matched["number"]), label=_Field.LABEL_OPTIONAL)
    if matched["value"]:
        entry = message.nested_type.add(name="".join(map(str.capitalize, name.split("_"))) + "Entry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING)
        value = entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL)
        _set_type(value, matched["value"], package, enum=False)
        field.label, field.type, field.type_name = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE, f"{path}.{entry.name}"
        return
    if matched["repeated"]:
        field.label = _Field.LABEL_REPEATED
    _set_type(field, kind, package, enum=bool(matched["enum"]))
    if matched["oneof"]:
        named = [each.name for each in message.oneof_decl]
        if matched["oneof"] not in named:
            message.oneof_decl.add(name=matched["oneof"])
            named.append(matched["oneof"])
        field.oneof_index = named.index(matched["oneof"])


def _set_type(field: Any, kind: str, package: str, *, enum: bool) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
        return
    field.type = _Field.TYPE_ENUM if enum else _Field.TYPE_MESSAGE
    field.type_name = kind if kind.startswith(".") else package + kind


def _add_service(
    file: descriptor_pb2.FileDescriptorProto, name: str, calls: Iterable[tuple[str, str, str, bool, bool]]
) -> None:
    service = file.service.add(name=name)
    for call, request, response, many_in, many_out in calls:
        asked, told = (each if each.startswith(".") else f".{file.package}.{each}" for each in (request, response))
        service.method.add(
            name=call, input_type=asked, output_type=told, client_streaming=many_in, server_streaming=many_out
        )


def _reflection(package: str) -> descriptor_pb2.FileDescriptorProto:
    made = _file(f"{package.replace('.', '/')}/reflection.proto", package, REFLECTION, {})
    asked, answered = "ServerReflectionRequest", "ServerReflectionResponse"
    _add_service(made, "ServerReflection", [("ServerReflectionInfo", asked, answered, True, True)])
    return made


def _files() -> tuple[tuple[str, bytes], ...]:
    """The services of v2 and of health, each with its file."""
    inference = _file("grpc_service.proto", "inference", INFERENCE, INFERENCE_ENUMS)
    streamed = ("ModelStreamInfer", "ModelInferRequest", "ModelStreamInferResponse", True, True)
    calls = [(each, f"{each}Request", f"{each}Response", False, False) for each in INFERENCE_CALLS]
    _add_service(inference, "GRPCInferenceService", [*calls, streamed])
    health = _file("grpc/health/v1/health.proto", "grpc.health.v1", HEALTH, HEALTH_ENUMS)
    asked = ("HealthCheckRequest", "HealthCheckResponse")
    _add_service(health, "Health", [("Check", *asked, False, False), ("Watch", *asked, False, True)])
    return (INFERENCE_SERVICE, inference.SerializeToString()), (HEALTH_SERVICE, health.SerializeToString())


def _torchserve_files() -> list[bytes]:
    """TorchServe's services, behind what their files import."""
    beside = [descriptor_pb2.FileDescriptorProto() for _ in (any_pb2, empty_pb2)]
    for file, known in zip(beside, (any_pb2, empty_pb2), strict=True):
        known.DESCRIPTOR.CopyToProto(file)
    status = _file("google/rpc/status.proto", "google.rpc", _STATUS, needs=[beside[0].name])
    torchserve = _file("inference.proto", TORCHSERVE_PACKAGE, TORCHSERVE_INFERENCE, needs=[beside[1].name, status.name])
    _add_service(torchserve, TORCHSERVE_SERVICE.rpartition(".")[2], TORCHSERVE_INFERENCE_CALLS)
    management = _file("management.proto", MANAGEMENT_PACKAGE, TORCHSERVE_MANAGEMENT)
    _add_service(management, MANAGEMENT_SERVICE.rpartition(".")[2], TORCHSERVE_MANAGEMENT_CALLS)
    return [file.SerializeToString() for file in (*beside, status, torchserve, management)]


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    reflections = (_reflection(package).SerializeToString() for package in REFLECTIONS)
    for file in (*(file for _, file in _files()), *reflections, *_torchserve_files()):
        pool.AddSerializedFile(file)
    return pool


POOL = _pool()
"""The descriptors of everything that is answered; reflection reads them."""


def publish() -> None:
    """Put them into the default pool, too, for a reflection that is not ours and reads that one.

    A process that has a client of the protocol has them there already.
    """
    default: Any = descriptor_pool.Default()
    for service, file in _files():
        try:
            default.FindServiceByName(service)
        except KeyError:
            default.AddSerializedFile(file)


def message(name: str, package: str = "inference") -> Any:
    """The class of a message of the protocol."""
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"{package}.{name}"))
