"""Forms of requests (KServe v2): what a JSON text says of the tensors behind it, read once for all of that text.

A client sends the same names, datatypes and shapes again and again, and only the bytes of the tensors differ. A text
that is the same to the last byte, for the same model, means the same; so it need not be parsed, nor compared with the
model's inputs again. Kept are the forms of requests that became one item of the network's own inputs, whose bytes go to
a worker as they came. This module parses nothing.
"""

from flambeau.protocols.v2_datatypes import NUMPY
from flambeau.protocols.v2_values import InferenceRequest, Parameters, Question, RequestedOutput
from flambeau.serving.model import Model
from flambeau.types import ArraySpec, Options, Payload

LONGEST = 2048
"""Bytes: longer texts are not kept."""

_AS_THEY_COME = NUMPY.keys() - {"BOOL"}  # datatypes of which any bytes are numbers


class KnownRequest:
    """What the requests of one text have in common. `size`: of all their tensors, in bytes."""

    __slots__ = ("arrays", "identity", "options", "outputs", "parameters", "size", "wanted")

    def __init__(self, request: InferenceRequest, question: Question) -> None:
        [payload] = question.payloads
        self.arrays: tuple[ArraySpec, ...] = payload.arrays
        self.size = payload.size
        self.options: Options = question.options
        self.wanted: tuple[RequestedOutput, ...] = question.wanted
        self.outputs: tuple[RequestedOutput, ...] = request.outputs
        self.parameters: Parameters = request.parameters
        self.identity = request.identity


def known(model: Model, text: bytes, binary: memoryview) -> InferenceRequest | None:
    """The request in a text and the bytes behind it, if one with the same text and as many bytes was read before."""
    form: KnownRequest | None = model.forms.get(text) if len(text) <= LONGEST else None  # hashing takes long
    if form is None or form.size != len(binary):
        return None
    question = Question([Payload("tensors", binary, form.arrays)], form.options, form.wanted, raw=True)
    return InferenceRequest((), form.outputs, form.parameters, form.identity, question=question)


def keep(model: Model, request: InferenceRequest, question: Question) -> None:
    """Keep the form of a request that was read, if any request of its text becomes an item in the same way."""
    if not request.text or not question.raw or len(question.payloads) != 1 or not model.apart:
        return
    if all(each.datatype in _AS_THEY_COME for each in request.inputs):
        model.forms.keep(request.text, KnownRequest(request, question))
