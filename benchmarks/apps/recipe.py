"""The recipe's Flask script: what stands in PyTorch's own tutorial, with this work's network in it.

Nothing is tuned: the transform is made for each request, gradients are recorded, every process takes every core.
"""

import io
from typing import Any

import torch
from flask import Flask, jsonify, request
from PIL import Image

from benchmarks.apps import model as shared
from benchmarks.apps.order import ordered

app = Flask(__name__)
order = ordered()
model = shared.network(order)
imagenet_class_index = None if order.numbers else shared.classes(order)


def transform_image(image_bytes: bytes) -> torch.Tensor:
    """One photograph to a batch of one."""
    my_transforms = shared.recipe_transform()
    image = Image.open(io.BytesIO(image_bytes))
    transformed: torch.Tensor = my_transforms(image).unsqueeze(0)
    return transformed


def get_prediction(image_bytes: bytes) -> dict[str, str]:
    """The class of a photograph."""
    assert imagenet_class_index is not None
    outputs = model.forward(transform_image(image_bytes))
    _, y_hat = outputs.max(1)
    return imagenet_class_index[int(y_hat.item())]


@app.route("/predict", methods=["POST"])
def predict() -> Any:
    """Answer a photograph, or numbers as the usual JSON variant of the script does."""
    if order.numbers:
        with torch.no_grad():
            return jsonify({"output": model(torch.tensor([request.get_json()["input"]]))[0].tolist()})
    return jsonify(get_prediction(request.files["file"].read()))
