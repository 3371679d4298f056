"""The APIs that servers speak: the body of a request, and the meaning of a line of the answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from corral.bench.exchange import BadReply

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for text."""

    text: str
    tokens: int  # to generate
    reuse_prefix: bool = False  # whether the server may answer from what it has computed before


@dataclass(frozen=True, slots=True)
class Piece:
    """The meaning of one line of an answer."""

    visible: bool = False  # it brings text
    finish: str = ""
    prompt_tokens: int = 0
    tokens: int = 0  # generated in all, by the server's count
    error: str = ""


@dataclass(frozen=True, slots=True)
class Dialect:
    """An API: where to send a request, how to write it, how to read a line."""

    name: str
    path: str
    body: Callable[[str, Ask], Body]
    read: Callable[[bytes], Piece | None]
    open: bool = True  # servers may have fields of their own beside the API's


@dataclass(frozen=True, slots=True)
class ServerKind:
    """A kind of server, and the fields that it takes beside those of its API."""

    name: str
    dialect: str = "completions"
    fields: Mapping[str, Any] = field(default_factory=dict)
    length_field: str = ""  # a further name for the number of tokens to generate
    cache_field: str = ""  # a field that, false, keeps it from reusing prefixes

    def extend(self, body: Body, ask: Ask) -> Body:
        """`body` with this server's own fields."""
        extra: Body = dict(self.fields)
        if self.length_field:
            extra[self.length_field] = ask.tokens
        if self.cache_field and not ask.reuse_prefix:
            extra[self.cache_field] = False
        return body | extra


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _OllamaLine(msgspec.Struct):
    response: str = ""
    thinking: str = ""
    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    eval_count: int = 0
    error: str = ""


_event, _line = msgspec.json.Decoder(_Event), msgspec.json.Decoder(_OllamaLine)


def _completion_body(model: str, ask: Ask) -> Body:
    return _openai_body(model, ask) | {"prompt": ask.text}


def _chat_body(model: str, ask: Ask) -> Body:
    return _openai_body(model, ask) | {"messages": [{"role": "user", "content": ask.text}]}


def _openai_body(model: str, ask: Ask) -> Body:
    return {
        "model": model,
        "max_tokens": ask.tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _ollama_body(model: str, ask: Ask) -> Body:
    options = {"num_predict": ask.tokens, "temperature": 0}
    return {"model": model, "prompt": ask.text, "raw": True, "stream": True, "options": options}


def _read_event(line: bytes) -> Piece | None:
    if not line.startswith(b"data:"):
        return None
    data = line[5:].strip()
    if not data or data == b"[DONE]":
        return None
    event = _decode(_event, data)
    if event.error:
        return Piece(error=_message(event.error))
    usage = event.usage or _Usage()
    finish, visible = "", False
    for choice in event.choices:
        finish = finish or choice.finish_reason or ""
        delta = choice.delta
        shown = choice.text if delta is None else delta.content or delta.reasoning_content or delta.reasoning
        # a completion's empty text is a token too (one that is not shown), but its end is not
        visible = visible or bool(shown) or (choice.text is not None and not choice.finish_reason)
    return Piece(visible, finish, usage.prompt_tokens, usage.completion_tokens)


def _read_ollama(line: bytes) -> Piece | None:
    if not line.strip():
        return None
    said = _decode(_line, line)
    finish = (said.done_reason or "stop") if said.done else ""
    visible = bool(said.response or said.thinking)
    return Piece(visible, finish, said.prompt_eval_count, said.eval_count, said.error)


def _decode(decoder: "msgspec.json.Decoder[Any]", data: bytes) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.DecodeError as error:
        raise BadReply(
            f"the server sent what is not an event of this API ({error}): {data[:100]!r}"
        ) from None


def _message(error: Any) -> str:
    message = error.get("message", error) if isinstance(error, dict) else error
    return str(message)[:300]


DIALECTS = {
    dialect.name: dialect
    for dialect in (
        Dialect("completions", "/v1/completions", _completion_body, _read_event),
        Dialect("chat", "/v1/chat/completions", _chat_body, _read_event),
        Dialect("ollama", "/api/generate", _ollama_body, _read_ollama, open=False),
    )
}

KINDS = {
    kind.name: kind
    for kind in (
        ServerKind("corral", fields={"ignore_eos": True}),
        ServerKind("vllm", fields={"ignore_eos": True}),
        ServerKind(
            "llama-server", fields={"ignore_eos": True}, length_field="n_predict", cache_field="cache_prompt"
        ),
        ServerKind("ollama", dialect="ollama"),
        ServerKind("other", fields={"ignore_eos": True}),
        ServerKind("plain"),  # one that refuses fields that it does not know
    )
}
