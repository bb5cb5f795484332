"""What the page's form sends, and what comes of it: a coroutine, so that no thread waits for a model.

It writes no HTML: `flambeau.web.ui` does, in a thread, when all is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flambeau.errors import RequestError
from flambeau.model import Model
from flambeau.service import Service
from flambeau.types import Options, Outcome
from flambeau.web import multipart
from flambeau.web.errors import STATUS
from flambeau.web.http import HttpRequest
from flambeau.web.multipart import Part
from flambeau.web.page_answer import TOP_K
from flambeau.web.page_form import form_of, read_form

SUBMITTED = "flambeau.submitted"
"""The key under which scope and environment carry what has come of a form already."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A form and its outcomes, or the one error; `parts` is empty where it could not be read."""

    model: Model
    parts: Sequence[Part] = ()
    outcomes: Sequence[Outcome] = ()
    error: RequestError | None = None

    @property
    def status(self) -> int:
        """The status of the page."""
        return 200 if self.error is None else STATUS[self.error.code]


def chosen(service: Service, text: str) -> Model:
    """The model that `?model=NAME[/VERSION]` takes. Raises `RequestError`."""
    name, _, version = text.partition("/")
    return service.get(name or None, version or None)


async def submit(service: Service, request: HttpRequest) -> Submitted:
    """Read the form and have it answered."""
    settings = service.settings
    model, parts = service.get(), []
    try:
        model = chosen(service, next(iter(request.parameters("model")), ""))
        content_type = request.headers.get("content-type", "")
        parts = await multipart.parse(request.body, content_type, max_parts=settings.max_items)
        payloads = read_form(form_of(model), parts, max_depth=settings.max_json_depth)
        if request.charge is not None:
            request.charge(len(payloads) - 1)
        outcomes = await service.predict(model, payloads, Options(top_k=TOP_K), timeout=settings.deadline)
        if len(outcomes) == 1 and isinstance(outcomes[0].result, RequestError):
            raise outcomes[0].result
        found = Submitted(model, parts, outcomes)
    except RequestError as error:
        found = Submitted(model, parts, error=error.with_traceback(None))  # its frames hold the body, and this
    model.metrics.answered(found.status, "page")
    return found
