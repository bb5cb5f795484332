"""The recipe's script as somebody would tune it by hand: for gunicorn's synchronous workers, one engine thread each."""

from typing import Any

from flask import Flask, jsonify, request

from benchmarks.apps.model import load
from benchmarks.apps.order import ordered

app = Flask(__name__)
order = ordered()
model = load(order)


@app.route("/predict", methods=["POST"])
def predict() -> Any:
    """Answer a photograph or numbers."""
    given = request.get_json()["input"] if order.numbers else request.files["file"].read()
    return jsonify(model.answer([model.prepare(given)])[0])
