"""The messages, calls and statuses, compared with those of the published protocol and the standard health service."""

from typing import Any, get_args

import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from flambeau.errors import RETRYABLE, Code
from flambeau.grpc.descriptors import POOL
from flambeau.grpc.inference_proto import HEALTH_SERVICE, INFERENCE_SERVICE
from flambeau.grpc.statuses import STATUSES

OURS_ARE_FEWER = {
    "ModelConfig", "ModelInput", "ModelOutput", "ModelInstanceGroup", "ModelDynamicBatching", "ModelVersionPolicy",
}  # fmt: skip
"""Messages of which we have the fields that we answer."""


def fields(message: Any) -> dict[str, tuple[object, ...]]:
    """Everything about a message's fields that is on the wire."""
    made = descriptor_pb2.DescriptorProto()
    message.CopyToProto(made)
    oneofs = [each.name for each in made.oneof_decl]
    return {
        each.name: (
            each.number, each.type, each.type_name, each.label,
            oneofs[each.oneof_index] if each.HasField("oneof_index") else None,
        )
        for each in made.field
    }  # fmt: skip


def messages(file: Any) -> dict[str, Any]:
    found = {}
    waiting = list(file.message_types_by_name.values())
    while waiting:
        each = waiting.pop()
        found[each.full_name] = each
        waiting += each.nested_types
    return found


def test_every_message_is_that_of_the_published_protocol() -> None:
    theirs = messages(service_pb2.DESCRIPTOR) | messages(model_config_pb2.DESCRIPTOR)
    ours = messages(POOL.FindFileByName("grpc_service.proto"))
    for name, message in ours.items():
        mine, right = fields(message), fields(theirs[name])
        if name.removeprefix("inference.") in OURS_ARE_FEWER:
            right = {each: field for each, field in right.items() if each in mine}
        assert mine == right, name
    assert set(messages(service_pb2.DESCRIPTOR)) <= set(ours)


def test_every_enumeration_is_theirs() -> None:
    ours = POOL.FindFileByName("grpc_service.proto").enum_types_by_name["DataType"]
    assert dict(model_config_pb2.DataType.items()) == {each.name: each.number for each in ours.values}
    kinds = POOL.FindEnumTypeByName("inference.ModelInstanceGroup.Kind")
    assert dict(model_config_pb2.ModelInstanceGroup.Kind.items()) == {each.name: each.number for each in kinds.values}
    statuses = POOL.FindEnumTypeByName("grpc.health.v1.HealthCheckResponse.ServingStatus")
    theirs = health_pb2.HealthCheckResponse.ServingStatus
    assert dict(theirs.items()) == {each.name: each.number for each in statuses.values}


@pytest.mark.parametrize(
    ("service", "file"), [(INFERENCE_SERVICE, service_pb2.DESCRIPTOR), (HEALTH_SERVICE, health_pb2.DESCRIPTOR)]
)
def test_every_call_is_theirs(service: str, file: Any) -> None:
    def calls(found: Any) -> dict[str, tuple[object, ...]]:
        made = descriptor_pb2.ServiceDescriptorProto()
        found.CopyToProto(made)
        return {
            each.name: (each.input_type, each.output_type, each.client_streaming, each.server_streaming)
            for each in made.method
        }

    theirs = calls(file.services_by_name[service.rpartition(".")[2]])
    ours = calls(POOL.FindServiceByName(service))
    assert {name: call for name, call in theirs.items() if name in ours} == ours
    assert set(theirs) - set(ours) <= {"List"}  # of the health service, from 2025 on: it is not there


def test_every_code_has_a_status() -> None:
    assert set(STATUSES) == set(get_args(Code))
    assert {status.name for status in STATUSES.values()} <= {
        "INVALID_ARGUMENT", "UNAUTHENTICATED", "PERMISSION_DENIED", "NOT_FOUND", "ALREADY_EXISTS", "UNIMPLEMENTED",
        "FAILED_PRECONDITION", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE", "INTERNAL",
    }  # fmt: skip


def test_what_gets_unavailable_may_be_sent_again() -> None:
    assert {code for code, status in STATUSES.items() if status.name == "UNAVAILABLE"} <= RETRYABLE
