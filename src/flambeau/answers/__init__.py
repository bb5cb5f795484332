"""Answers, one module for each form that an answer can have: what travels, what is sent, what a table holds.

Structs travel between processes as they are. Nothing here knows a network, a file format of tables or HTTP.
"""

from flambeau.answers.base import Answer, Asked, Expected, Label, PartName, Scored, insisted
from flambeau.answers.classification import Classification
from flambeau.answers.embedding import Embedding
from flambeau.answers.multi_label import MultiLabel
from flambeau.answers.regression import Regression
from flambeau.answers.value import Plain, Value

__all__ = [
    "Answer",
    "Asked",
    "Classification",
    "Embedding",
    "Expected",
    "Label",
    "MultiLabel",
    "PartName",
    "Plain",
    "Regression",
    "Scored",
    "Value",
    "WireAnswer",
    "insisted",
]  # fmt: skip

WireAnswer = Classification | MultiLabel | Regression | Embedding | Value
"""Every answer that may come from another process: the closed set that is decoded."""
