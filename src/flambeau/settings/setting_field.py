"""How a field of a settings class is written: its default, its documentation, its bounds and its group."""

from dataclasses import field
from typing import Any

from flambeau.settings.schema import OTHERS


def setting(default: Any, meaning: str, *, group: str = OTHERS, long: str = "", **bounds: Any) -> Any:
    """A dataclass field with its own documentation: `meaning` is a line for `--help`.

    `group` is its heading; `long` replaces `meaning` in the documentation. `bounds`: minimum, maximum, choices, metavar
    (FILE and DIR make it a path), unset.
    """
    return field(default=default, metadata={"meaning": meaning, "group": group, "long": long, **bounds})
