"""The changes of models that were made while the service runs, so that a front that starts later can repeat them.

Only what still holds is kept: an unload of a version replaces a load of it, and of several values that were given to
one thing the last. A load replaces an unload, unless the unload took something back: whoever unloads the version that
was made the default has no default of its own choice any more. So it does not grow with the number of changes, but with
that of models.
"""

import re

import msgspec

from flambeau.fronts.messages import PlainRequest

_VERSION = re.compile(r"((?:/v2/repository)?(/models/[^/]+)(?:/versions/[^/]+)?)/(load|unload)")
_MODEL = re.compile(r"/models/([^/]+)")


class ChangeJournal:
    """The requests that made the changes, oldest first."""

    def __init__(self) -> None:
        self._made: list[tuple[str, PlainRequest]] = []  # what each is about, and the request

    def requests(self) -> list[PlainRequest]:
        """What a front that starts now must repeat, in order."""
        return [request for _, request in self._made]

    def note(self, request: PlainRequest) -> None:
        """A change was made."""
        if request.method == "PUT":
            self._note_fields(request)
        elif found := _VERSION.fullmatch(request.path):
            about, model, change = found.groups()
            if change == "load" and self._took_back(about, f"PUT {model}"):
                about = f"{about} again"
            else:
                self._forget(f"{about} again")
            self._replace(about, request)
        elif request.method == "POST" and request.path == "/models":  # SageMaker loads a model
            self._replace(f"/models/{msgspec.json.decode(request.body).get('model_name')}", request)
        elif request.method == "DELETE" and _MODEL.fullmatch(request.path):
            self._forget(request.path)

    def _replace(self, about: str, request: PlainRequest) -> None:
        self._forget(about)
        self._made.append((about, request))

    def _took_back(self, about: str, change: str) -> bool:
        """Whether what is noted about a version is an unload, after a change of its model."""
        before = False
        for each, request in self._made:
            before |= each == change
            if each == about:
                return before and request.path.endswith("/unload")
        return False

    def _forget(self, about: str) -> None:
        self._made = [(each, request) for each, request in self._made if each != about]

    def _note_fields(self, request: PlainRequest) -> None:
        """`PUT /models/{model}` gives values to fields: earlier values of these say nothing any more."""
        about = f"PUT {request.path}"
        named = {*msgspec.json.decode(request.body)}
        if "traffic" in named:
            named.add("sticky_header")  # belongs to it
        kept: list[tuple[str, PlainRequest]] = []
        for each, earlier in self._made:
            if each != about:
                kept.append((each, earlier))
                continue
            left = {name: value for name, value in msgspec.json.decode(earlier.body).items() if name not in named}
            if left:
                kept.append((each, msgspec.structs.replace(earlier, body=msgspec.json.encode(left))))
        self._made = [*kept, (about, request)]
