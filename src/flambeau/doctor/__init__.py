"""`flambeau doctor`: what this machine and its packages are like, and what to do about what is not right.

Every room looks at one subject and gives findings; nothing here mends anything. torch, the sandbox and models are tried
in processes of their own.
"""

from typing import Literal

import msgspec

Verdict = Literal["fine", "note", "warning", "broken"]
"""`note` asks for nothing; with `broken` something that was asked for does not work."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was looked at: its `subject`, what was `found`, and `advice`, what to do about it."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
