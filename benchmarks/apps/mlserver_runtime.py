"""MLServer: a runtime behind the V2 protocol. Photographs travel as base64 in JSON, for it takes no forms."""

import json

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.apps.model import load as load_model
from benchmarks.apps.order import ordered

order = ordered()


class Runtime(MLModel):
    """MLServer joins the requests of a batch along their first axis before it calls `predict`."""

    async def load(self) -> bool:
        """Load the model, in each worker."""
        self.model = load_model(order)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answers to a batch of requests."""
        given = payload.inputs[0]
        if order.numbers:
            rows = self.model.answer(NumpyCodec.decode_input(given).tolist())
            output = NumpyCodec.encode_output("output", np.array([row["output"] for row in rows], np.float32))
        else:
            photographs = [self.model.prepare(data) for data in Base64Codec.decode_input(given)]
            output = StringCodec.encode_output("class", [json.dumps(each) for each in self.model.answer(photographs)])
        return InferenceResponse(
            id=payload.id, model_name=self.name, model_version=self.version, outputs=[output]
        )  # fmt: skip
