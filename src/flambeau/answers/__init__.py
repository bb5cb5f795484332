"""What answers are made of: their base, the values without a form of their own, and what is computed of numbers.

The answers with a form of their own stand with their tasks, in `flambeau.tasks`. Nothing here knows a network, a file
format of tables or HTTP.
"""

from flambeau.answers.base import Answer, Asked, Expected, Label, PartName, Scored
from flambeau.answers.raw_outputs import RawOutputs
from flambeau.answers.value import Plain, Value

__all__ = ["Answer", "Asked", "Expected", "Label", "PartName", "Plain", "RawOutputs", "Scored", "Value"]
