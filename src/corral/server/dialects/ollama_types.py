"""Ollama's requests as they come over the wire. Unknown fields are ignored, as there; null means unset."""

from typing import Any

import msgspec


class Message(msgspec.Struct):
    """One message of a chat."""

    role: str = ""
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Any] | None = None


class Generating(msgspec.Struct, kw_only=True):
    """What /api/generate and /api/chat share."""

    model: str = ""
    stream: bool | None = None
    options: dict[str, Any] | None = None
    format: Any = None
    keep_alive: int | float | str | None = None
    think: bool | str | None = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    debug_render_only: bool | None = msgspec.field(default=None, name="_debug_render_only")


class GenerateRequest(Generating):
    """POST /api/generate."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None


class ChatRequest(Generating):
    """POST /api/chat."""

    messages: list[Message] | None = None
    tools: list[Any] | None = None


class ModelRequest(msgspec.Struct):
    """POST /api/show and /api/pull, DELETE /api/delete: clients send `model` or the older `name`."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None
    stream: bool | None = None
    insecure: bool | None = None

    def wanted(self) -> str:
        """The name that was meant."""
        return self.model or self.name or ""
