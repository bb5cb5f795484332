"""Output to a terminal, for any command: text made safe to print, and the progress of a build."""

import time

import click

from flambeau.sources.request import Advance, BuildStep, Note


def printable(text: str) -> str:
    """The text with a question mark for each unprintable character: names of tensors come from untrusted files."""
    return "".join(char if char.isprintable() else "?" for char in text)


class ShowProgress:
    """Shows the build's steps, their progress and their duration on standard error."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._tenths = 0

    def __call__(self, event: BuildStep | Advance | Note) -> None:
        if isinstance(event, Advance):
            self._advance(event.share)
        elif isinstance(event, Note):
            self.done()
            click.echo(f"      {printable(event.text)}", err=True)
        else:
            self.done()
            click.echo(f"[{event.number}/{event.of}] {printable(event.what)} ...", err=True, nl=False)
            self._since, self._tenths = time.monotonic(), 0

    def _advance(self, share: float) -> None:
        """A mark for every tenth: it reads the same on a terminal and in a log."""
        while self._tenths < int(share * 10) and self._since is not None:
            self._tenths += 1
            click.echo(f" {self._tenths}0%" if self._tenths % 5 == 0 else ".", err=True, nl=False)

    def done(self) -> None:
        """End the line of the running step with its duration."""
        if self._since is not None:
            click.echo(f" {time.monotonic() - self._since:.1f} s", err=True)
            self._since = None
