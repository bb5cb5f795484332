"""The Python client of a running service: `flambeau.Client`. It speaks HTTP and knows nothing of the server's side."""

from flambeau.client.answers import Prediction, RankedClass, ScoredLabel
from flambeau.client.client import Client
from flambeau.client.errors import ClientError, InputNotSent, NoAnswer, Refused

__all__ = ["Client", "ClientError", "InputNotSent", "NoAnswer", "Prediction", "RankedClass", "Refused", "ScoredLabel"]
