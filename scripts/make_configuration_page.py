"""Write the tables of docs/configuration.md from the table of settings: `make docs`. With --check, only compare."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from flambeau.settings import service as config
from flambeau.settings import table
from flambeau.settings.schema import Setting

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = "| Flag | Environment variable | Default | Values | Meaning |\n|---|---|---|---|---|"
_UNITS = {"SECONDS": "seconds", "MS": "milliseconds", "BYTES": "bytes", "PIXELS": "pixels"}
_KINDS = {
    "text": "text", "whole": "whole number", "number": "number", "switch": "switch", "choice": "word",
    "list": "list", "shape": "whole numbers", "numbers": "numbers", "object": "JSON",
}  # fmt: skip


def shown(default: object) -> str:
    """A default as the page shows it."""
    if default is None or default in ({}, ()):
        return "not set"
    if default is False:
        return "off"
    return f"`{default:g}`" if isinstance(default, float) else f"`{default}`"


def values(setting: Setting) -> str:
    """What a setting can be: its words, or its unit and bounds."""
    if setting.choices and len(setting.choices) < 5:
        return ", ".join(f"`{each}`" for each in setting.choices)
    kind = "path" if setting.is_path else _UNITS.get(setting.placeholder, _KINDS[setting.kind])
    if setting.minimum is None:
        return kind
    return f"{kind}, {setting.minimum:g} " + ("or more" if setting.maximum is None else f"to {setting.maximum:g}")


def line(setting: Setting) -> str:
    """A setting's line of the table."""
    flag = "SOURCE" if setting.name == "source" else setting.flag
    cells = (f"`{flag}`", f"`{setting.variable}`", shown(setting.default), values(setting))
    return f"| {' | '.join(cells)} | {setting.long or setting.meaning} |"


def source() -> Iterator[str]:
    """What the source is, in one table."""
    yield from (HEAD, *map(line, table.SOURCE))


def service() -> Iterator[str]:
    """How the service runs, a table for each group."""
    for group, settings in table.grouped().items():
        own = [each for each in settings if each in config.rows()]
        if own:
            yield from (f"### {group}\n", HEAD, *map(line, own), "")


def variables() -> Iterator[str]:
    """The variables that are no settings."""
    yield "| Environment variable | Meaning |\n|---|---|"
    yield from (f"| `{name}` | {meaning} |" for name, meaning in table.VARIABLES.items())


def page(text: str) -> str:
    """The page with its tables made anew between their markers."""
    makers: tuple[Callable[[], Iterator[str]], ...] = (source, service, variables)
    for make in makers:
        begin, end = f"<!-- made by `make docs`: {make.__name__} -->\n", f"<!-- end of {make.__name__} -->"
        before, _, rest = text.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise SystemExit(f"{PAGE.name} lacks the lines {begin.strip()} and {end}: put them where the table belongs")
        text = f"{before}{begin}\n{chr(10).join(make()).strip()}\n\n{end}{after}"
    return text


def main() -> int:
    """Write the page, or say that it is not what the table makes."""
    old = PAGE.read_text()
    new = page(old)
    if "--check" in sys.argv[1:]:
        if new != old:
            print("docs/configuration.md is not what the table of settings makes: run `make docs`", file=sys.stderr)
        return int(new != old)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
