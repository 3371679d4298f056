"""Jinja as transformers sets it up (utils/chat_template_utils.py), with limits.

Used in the render process only: see render_worker.py.
"""

import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import minijinja

from corral.text.render_frames import TemplateFailed

# Instructions that one rendering may take: they bound its time. Its process bounds its memory.
FUEL = 500_000
MAX_OUTPUT = 4 << 20  # characters
MAX_MARGIN = 1000  # characters that our own filters put before a line or between values


class _Raised(Exception):
    """The template called raise_exception."""


@functools.lru_cache(maxsize=8)
def _environment(source: str) -> minijinja.Environment:
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, fuel=FUEL, debug=False)
    environment.add_filter("tojson", _to_json)
    environment.add_filter("indent", _indent)
    environment.add_test("iterable", lambda value: isinstance(value, Iterable))  # theirs accepts none
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", _strftime_now)
    try:
        environment.add_template("chat", source)
    except minijinja.TemplateError as error:
        raise TemplateFailed("syntax", _reason(error)) from None
    return environment


def render(source: str, context: Mapping[str, Any]) -> str:
    """Render a template; TemplateFailed if it does not."""
    environment = _environment(source)
    try:
        rendered = environment.render_template("chat", **context)
    except _Raised as error:
        raise TemplateFailed("raised", str(error)) from None
    except minijinja.TemplateError as error:
        raise TemplateFailed("failed", _reason(error)) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # from a filter below
        raise TemplateFailed("failed", str(error)) from None
    if len(rendered) > MAX_OUTPUT:
        raise TemplateFailed("raised", f"the conversation becomes more than {MAX_OUTPUT} characters long")
    return rendered


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: Sequence[str] | None = None,
    sort_keys: bool = False,
) -> str:
    pair = (_margin(separators[0]), _margin(separators[1])) if separators else None
    margin = None if indent is None else _margin(indent)
    text = json.dumps(value, ensure_ascii=False, indent=margin, separators=pair, sort_keys=sort_keys)
    if ensure_ascii:  # but for the characters of seals.py
        text = re.sub("[^\x00-\x7e\U00012000-\U000137ff]", lambda match: json.dumps(match[0])[1:-1], text)
    return text


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    """As Jinja does it; minijinja's own drops a newline at the end."""
    margin = _margin(width)
    lines = (text + "\n").splitlines()
    if len(text) + len(lines) * len(margin) > MAX_OUTPUT:
        raise ValueError(f"the indented text is longer than {MAX_OUTPUT} characters")
    rest = [margin + line if line or blank else line for line in lines[1:]]
    return "\n".join([(margin if first else "") + lines[0], *rest])


def _margin(width: int | str) -> str:
    """Spaces, or the text that is given in their place; a hostile template asks for gigabytes of them."""
    if (len(width) if isinstance(width, str) else width) > MAX_MARGIN:
        raise ValueError(f"more than {MAX_MARGIN} characters between or before values")
    return width if isinstance(width, str) else " " * width


def _raise_exception(message: str) -> None:
    raise _Raised(message)


def _strftime_now(form: str) -> str:
    if len(form) > MAX_MARGIN:
        raise ValueError(f"a date's form is longer than {MAX_MARGIN} characters")
    return datetime.datetime.now().strftime(form)


def _reason(error: minijinja.TemplateError) -> str:
    where = f" (line {error.line})" if error.line else ""
    if error.kind == "OutOfFuel":
        return f"it takes more than {FUEL} steps; send fewer messages{where}"
    return f"{error.detail or error.kind}{where}"
