"""Server reflection: what `grpcurl` and graphical clients ask to learn the protocol, as `v1` and as `v1alpha`."""

from collections.abc import Sequence
from typing import Any

from google.protobuf import descriptor_pb2

from flambeau.errors import RequestError
from flambeau.grpc.calls import Calls
from flambeau.grpc.descriptors import POOL, REFLECTIONS, message
from flambeau.grpc.methods import GrpcCall, Method, Streaming, parsed
from flambeau.grpc.statuses import Status


class Reflection:
    """Describes the services of those names, and itself."""

    def __init__(self, calls: Calls, services: Sequence[str]) -> None:
        self._calls = calls
        self._services = sorted([*services, *(f"{each}.ServerReflection" for each in REFLECTIONS)])

    def methods(self, package: str) -> list[Method]:
        """The method, under the name of one of its packages."""
        request, response = (message(f"ServerReflection{each}", package) for each in ("Request", "Response"))

        async def answer(call: GrpcCall) -> None:
            wire = call.wire
            assert wire is not None
            while (found := await wire.read()) is not None:
                try:
                    asked = parsed(request, await wire.raw(found))
                finally:
                    wire.release(found)
                made = response(original_request=asked, valid_host=asked.host)
                self._fill(made, asked)
                await wire.write(made.SerializeToString())

        return [Streaming("ServerReflection.ServerReflectionInfo", "public", answer, quiet=True)]

    def _fill(self, made: Any, asked: Any) -> None:
        """Answer one question. What is not there is told within the answer, and the stream goes on."""
        what = asked.WhichOneof("message_request")
        try:
            if what == "list_services":
                for name in self._services:
                    made.list_services_response.service.add(name=name)
            elif what == "file_by_filename":
                _describe(made, POOL.FindFileByName(asked.file_by_filename))
            elif what == "file_containing_symbol":
                _describe(made, POOL.FindFileContainingSymbol(asked.file_containing_symbol))
            elif what == "all_extension_numbers_of_type":
                found = POOL.FindMessageTypeByName(asked.all_extension_numbers_of_type)  # which has none, in proto3
                made.all_extension_numbers_response.base_type_name = found.full_name
            elif what == "file_containing_extension":
                raise KeyError
            else:
                raise RequestError("the request asks for nothing", code="bad_request")
        except KeyError:
            made.error_response.error_code = Status.NOT_FOUND
            made.error_response.error_message = "there is nothing of that name"


def _describe(made: Any, file: Any) -> None:
    """Put the file into the answer, and behind it those that it imports."""
    wanted, told = [file], set()
    while wanted:
        each = wanted.pop()
        if each.name not in told:
            told.add(each.name)
            found = descriptor_pb2.FileDescriptorProto()
            each.CopyToProto(found)
            made.file_descriptor_response.file_descriptor_proto.append(found.SerializeToString())
            wanted.extend(each.dependencies)
