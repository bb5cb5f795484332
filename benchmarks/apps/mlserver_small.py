"""MLServer: a runtime of one small ONNX graph over numbers, for `benchmarks.many_models`."""

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class SmallGraph(MLModel):
    """Runs the graph that the model's settings name as its uri."""

    async def load(self) -> bool:
        """Open the graph on one thread."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(str(self.settings.parameters.uri), options)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The outputs of one request."""
        given = NumpyCodec.decode_input(payload.inputs[0]).astype("float32")
        [found] = self.session.run(None, {self.session.get_inputs()[0].name: given})
        output = NumpyCodec.encode_output("output", found)
        return InferenceResponse(model_name=self.name, model_version=self.version, outputs=[output])
