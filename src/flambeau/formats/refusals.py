"""How a look into a file ends when the file is not to be loaded. It knows no format."""


class Refusal(Exception):
    """The file is damaged, lies about itself, or is nothing we read.

    `reason` reads on from the file's name ("is cut short"), and `remedy` is a sentence of its own. It never leaves this
    package: `examine` makes a report of it.
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy or UNTRUSTED


UNTRUSTED = "get the file again from where it was made, best as safetensors, and do not load this one"
DOWNLOAD_AGAIN = "download or copy it again, and compare its size with the original"

_LONGEST = 120


def plain(text: str) -> str:
    """A text out of a file, fit to be printed: no control characters, no surrogates, at most 120 characters."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text[: _LONGEST + 1])
    return shown if len(shown) <= _LONGEST else shown[: _LONGEST - 1] + "…"
