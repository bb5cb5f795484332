"""The Python client of a running service: `flambeau.Client`. It speaks HTTP and knows nothing of the server's side."""

from flambeau.client.answers import (
    ClientError,
    FoundObject,
    FoundSegment,
    InputNotSent,
    Keypoint,
    NoAnswer,
    Prediction,
    RankedClass,
    Refused,
    ScoredLabel,
)
from flambeau.client.client import Client

__all__ = [
    "Client",
    "ClientError",
    "FoundObject",
    "FoundSegment",
    "InputNotSent",
    "Keypoint",
    "NoAnswer",
    "Prediction",
    "RankedClass",
    "Refused",
    "ScoredLabel",
]
