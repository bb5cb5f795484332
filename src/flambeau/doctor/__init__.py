"""`flambeau doctor`: checks this machine and its packages, and says how to fix what is wrong.

Each room checks one subject and gives findings; nothing here changes anything. torch, the sandbox and models are tried
in processes of their own.
"""

from typing import Literal

import msgspec

Verdict = Literal["fine", "note", "warning", "broken"]
"""`note` needs no action; `broken` means that something the user asked for does not work."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check: its `subject`, what was `found`, and `advice` on what to do."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""
