"""One step of a batch, and what the client may see of its failure.

It knows no model: replicas of every sort take their steps through it.
"""

import logging
import signal
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from flambeau import logs
from flambeau.errors import RequestError

P = ParamSpec("P")
T = TypeVar("T")


def attempt(step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | RequestError:
    """Take one step of a batch, and turn what it raises into the one error the client may see.

    The client never sees the text of a foreign exception, which may hold paths or data. The log does.
    """
    try:
        return step(*args, **kwargs)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("the model ran out of memory over this input", code="out_of_memory")
    except BaseException as error:  # a model's sys.exit(), or a timeout of gevent's: its failure, not our end
        if isinstance(error, KeyboardInterrupt) and _may_be_ctrl_c():
            raise
        logs.failure("the model failed on an input", error)
        failure = RequestError("the model failed on this input", code="model_error")
        failure.__cause__ = error
        return failure


def _may_be_ctrl_c() -> bool:
    """Whether a `KeyboardInterrupt` in this thread may be the user's; else it can only come of a model's code."""
    in_main = threading.current_thread() is threading.main_thread()
    return in_main and signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.SIG_DFL, None)


def invalid_output(message: str) -> RequestError:
    """The error of an answer that cannot be sent; `message` says in the log why not."""
    logs.event(message, level=logging.ERROR)
    return RequestError("the model gave an answer that cannot be sent", code="model_output_invalid")
