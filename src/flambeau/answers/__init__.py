"""Answers: their base class, the answers that belong to no task, and the computations on their numbers.

A task's own answer is in its module in `flambeau.tasks`. Nothing here depends on a network, a table's file format or
HTTP.
"""

from flambeau.answers.base import Answer, Asked, Expected, Label, PartName, Scored
from flambeau.answers.raw_outputs import RawOutputs
from flambeau.answers.value import Plain, Value

__all__ = ["Answer", "Asked", "Expected", "Label", "PartName", "Plain", "RawOutputs", "Scored", "Value"]
