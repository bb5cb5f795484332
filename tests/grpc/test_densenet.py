"""DenseNet-121 over KServe v2: the logits are PyTorch's in every form of the protocol, and the same in all of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import tritonclient.grpc
import tritonclient.http

from flambeau.architectures import torchvision_compat
from tests.support.grpc_server import grpc_serving
from tests.support.server import Serve


@pytest.mark.slow  # it is built, which takes a minute
def test_logits_are_torchs_over_rest_and_grpc(serve: Serve, tmp_path: Path) -> None:
    torchvision_compat.declare_missing()
    from torchvision import models

    torch.manual_seed(0)
    network = models.densenet121(weights=None).eval()
    torch.save(network.state_dict(), tmp_path / "densenet121.pth")
    pixels = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        right = network(pixels).numpy()
    found = {}
    with grpc_serving(serve, str(tmp_path / "densenet121.pth"), "--labels", "imagenet") as server:
        with tritonclient.http.InferenceServerClient(server.http.url.removeprefix("http://")) as rest:
            [given] = [each for each in rest.get_model_metadata("densenet121")["inputs"] if each["datatype"] == "FP32"]
            for binary in (True, False):
                sent = tritonclient.http.InferInput(given["name"], list(pixels.shape), "FP32")
                sent.set_data_from_numpy(pixels.numpy(), binary_data=binary)
                wanted = tritonclient.http.InferRequestedOutput("output", binary_data=binary)
                answer = rest.infer("densenet121", [sent], outputs=[wanted])
                found["binary" if binary else "JSON"] = answer.as_numpy("output")
        with tritonclient.grpc.InferenceServerClient(server.target) as client:
            sent = tritonclient.grpc.InferInput(given["name"], list(pixels.shape), "FP32")
            sent.set_data_from_numpy(pixels.numpy())
            found["gRPC"] = client.infer("densenet121", [sent]).as_numpy("output")
    for form, logits in found.items():
        assert np.array_equal(logits, found["binary"]), form
        np.testing.assert_allclose(logits, right, rtol=1e-6, atol=1e-6 * np.abs(right).max(), err_msg=form)
