"""A model's own chat template: a conversation to a prompt."""

import contextlib
import datetime
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import minijinja

from corral.errors import CorralError, InvalidRequest, UnsupportedModel
from corral.text.default_templates import default_template
from corral.text.seals import Seals
from corral.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "load_template"]

KEY = "tokenizer.chat_template"
# Instructions that one rendering may take. They bound time, not memory: a hostile template that doubles a
# string in a loop is stopped by neither this nor MAX_OUTPUT.
FUEL = 500_000
MAX_OUTPUT = 4 << 20  # characters
MAX_SOURCE = 128 << 10  # characters; several times the longest template in use
MAX_MARGIN = 1000  # characters that our own filters put before a line or between values
# Marks which tokens are trained on; says nothing about the text.
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


class _Raised(Exception):
    """The template called raise_exception."""


# Conversations that show which control tokens a template puts together from pieces.
_CALL = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
_TOOL = {"name": "look", "description": "looks", "parameters": {"type": "object", "properties": {}}}
_PROBES: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "hello"}]},
    {
        "messages": [
            {"role": "system", "content": "brief"},
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "yes"},
            {"role": "user", "content": "more"},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "", "tool_calls": [_CALL]},
            {"role": "tool", "name": "look", "tool_call_id": "call00001", "content": "seen"},
        ],
        "tools": [{"type": "function", "function": _TOOL}],
    },
)


class ChatTemplate:
    """Renders conversations. What a conversation says never becomes a control token; see seals.py."""

    def __init__(self, source: str, tokenizer: Tokenizer):
        self.source = source
        self._tokenizer = tokenizer
        self._broken: str | None = None
        if len(source) > MAX_SOURCE:
            self._broken = (
                f"the model's chat template is too long: {len(source)} characters, not {MAX_SOURCE}"
            )
            source = ""
        self._seals = Seals(tokenizer, GENERATION_TAG.sub("", source))
        self._environment = _environment()
        try:
            self._environment.add_template("chat", self._seals.source)
        except minijinja.TemplateError as error:
            self._broken = f"the model's chat template cannot be used: {_reason(error)}"
        for probe in _PROBES:
            with contextlib.suppress(CorralError):  # no tools, no system role
                self._seals.learn(self._render(**probe))

    def render(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The prompt as text. Options as in `encode`."""
        return self._seals.text(self._render(messages, **options))

    def encode(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """The prompt's token ids, with one BOS if the model wants it or the template writes it.

        Options: add_generation_prompt (True), tools (None), documents (None), what else the template reads.
        """
        parts = self._seals.parts(self._render(messages, **options))
        bos = self._tokenizer.bos_id
        return self._tokenizer.encode_parts(parts, add_bos=self._tokenizer.add_bos and parts[:1] != [bos])

    @functools.cached_property
    def supports_tools(self) -> bool:
        """Whether the template reads `tools`."""
        return not self._broken and "tools" in self._environment.undeclared_variables_in_template("chat")

    @functools.cached_property
    def supports_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        probe = [{"role": "system", "content": "probe0"}, {"role": "user", "content": "hello"}]
        try:
            return "probe0" in self.render(probe)
        except CorralError:
            return False

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **options: Any
    ) -> str:
        if self._broken:
            raise UnsupportedModel(self._broken)
        context: dict[str, Any] = {"tools": None, "documents": None, **options}
        try:
            context = self._seals.defuse({**context, "messages": [dict(message) for message in messages]})
            context |= {**self._seals.names, "add_generation_prompt": add_generation_prompt}
            rendered = self._environment.render_template("chat", **context)
        except _Raised as error:
            raise InvalidRequest(self._seals.text(str(error)), "messages") from None
        except minijinja.TemplateError as error:
            reason = self._seals.text(_reason(error))
            raise InvalidRequest(f"the model's chat template failed: {reason}", "messages") from None
        except (
            TypeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:  # from a filter below, or bottomless messages
            raise InvalidRequest(f"the model's chat template failed: {error}", "messages") from None
        if len(rendered) > MAX_OUTPUT:
            raise InvalidRequest(
                f"the conversation becomes more than {MAX_OUTPUT} characters long", "messages"
            )
        return rendered


def load_template(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate:
    """The model's template, or the one that its control tokens suggest."""
    source = metadata.get(KEY)
    return ChatTemplate(source if isinstance(source, str) else default_template(tokenizer), tokenizer)


def _environment() -> minijinja.Environment:
    """Jinja as transformers sets it up (utils/chat_template_utils.py), with a limit on its work."""
    environment = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, fuel=FUEL, debug=False)
    environment.add_filter("tojson", _to_json)
    environment.add_filter("indent", _indent)
    environment.add_test("iterable", lambda value: isinstance(value, Iterable))  # theirs accepts none
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", _strftime_now)
    return environment


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
