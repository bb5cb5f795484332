"""Server reflection: what `grpcurl` and graphical clients ask to learn the protocol.

The package grpcio-reflection answers under the old name, `v1alpha`; newer clients first ask for `v1`, which has the
same messages under another name.
"""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from flambeau.grpc.descriptors import POOL
from flambeau.grpc.message_cost import MOST_BESIDE

_OLD, _NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"


def _describe() -> None:
    file = descriptor_pb2.FileDescriptorProto()
    reflection_pb2.DESCRIPTOR.CopyToProto(file)
    POOL.AddSerializedFile(file.SerializeToString())
    text = text_format.MessageToString(file).replace(_OLD, _NEW).replace("reflection/v1alpha", "reflection/v1")
    POOL.AddSerializedFile(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()).SerializeToString())


_describe()


def _request(raw: bytes) -> Any:
    """A request; an empty one, which is refused, in the place of one that is far too long."""
    return reflection_pb2.ServerReflectionRequest.FromString(raw if len(raw) <= MOST_BESIDE else b"")


def handlers(services: Iterable[str]) -> list[Any]:
    """gRPC's handlers of reflection about those services and itself."""
    own = [f"{each}.ServerReflection" for each in (_OLD, _NEW)]
    servicer = reflection.aio.ReflectionServicer([*services, *own], pool=POOL)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        _request,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(each, {"ServerReflectionInfo": method}) for each in own]
