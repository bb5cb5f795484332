"""A detector or a segmenter of torchvision in Flask, as somebody would tune it by hand: eager PyTorch, gunicorn's
synchronous workers, one thread each. `PLACES_WEIGHTS` names the file of weights, `PLACES_NETWORK` the network,
`PLACES_CLASSES` how many classes it has, `PLACES_THRESHOLD` the least score of an object.
"""

import io
import os
from typing import Any

import torch
from flask import Flask, Response, jsonify, request
from PIL import Image

from benchmarks.apps.model import torchvision

THRESHOLD = float(os.environ["PLACES_THRESHOLD"])
_SHORTER = 520  # pixels, as torchvision's own weights for segmenters were trained
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

app = Flask(__name__)
transforms = torchvision().transforms.functional


def _load() -> Any:
    from torchvision.models import get_model

    torch.set_num_threads(1)
    state = torch.load(os.environ["PLACES_WEIGHTS"], weights_only=True)
    classes = int(os.environ["PLACES_CLASSES"])
    made = get_model(os.environ["PLACES_NETWORK"], weights=None, weights_backbone=None, num_classes=classes)
    made.load_state_dict(state)
    return made.eval()


network = _load()


@app.route("/detect", methods=["POST"])
def detect() -> Any:
    """The objects in a picture, as JSON."""
    pixels = transforms.to_tensor(Image.open(io.BytesIO(request.get_data())).convert("RGB"))
    with torch.inference_mode():
        [found] = network([pixels])
    kept = found["scores"] >= THRESHOLD
    objects = zip(
        found["labels"][kept].tolist(), found["scores"][kept].tolist(), found["boxes"][kept].tolist(), strict=True
    )
    return jsonify(predictions=[{"label": label, "score": score, "box": box} for label, score, box in objects])


@app.route("/segment", methods=["POST"])
def segment() -> Any:
    """The class of each pixel of a picture, as a grey PNG."""
    image = Image.open(io.BytesIO(request.get_data())).convert("RGB")
    pixels = transforms.normalize(transforms.to_tensor(transforms.resize(image, _SHORTER)), _MEAN, _STD)
    with torch.inference_mode():
        scores = network(pixels[None])["out"]
        scores = torch.nn.functional.interpolate(scores, image.size[::-1], mode="bilinear", align_corners=False)
        classes = scores[0].argmax(0).to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(classes.numpy()).save(file, "PNG")
    return Response(file.getvalue(), mimetype="image/png")
