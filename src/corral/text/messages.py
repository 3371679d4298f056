"""A conversation as all APIs mean it: messages of typed parts, and the tools that a model may call.

A chat template reads messages and tools as transformers gives them: `message_dict` and `tool_dict` make that
form, with every string of the conversation passed through `clean` on its way.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

Role = Literal["system", "user", "assistant", "tool"]
Clean = Callable[[Any], Any]


class Text(msgspec.Struct, frozen=True, gc=False):
    """Something said."""

    text: str


class Thought(msgspec.Struct, frozen=True, gc=False):
    """Something that an assistant thought before it said the rest."""

    text: str


class ToolCall(msgspec.Struct, frozen=True):
    """An assistant's wish to have a tool called."""

    id: str
    name: str
    arguments: Mapping[str, Any]  # as the tool's JSON Schema has them


class ToolResult(msgspec.Struct, frozen=True, gc=False):
    """What a tool's call gave."""

    id: str  # the ToolCall's
    name: str  # the tool's
    text: str


Part = Text | Thought | ToolCall | ToolResult


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. Thoughts and tool calls are an assistant's, results a tool's."""

    role: Role
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """What is said, without thoughts and calls."""
        return "".join(part.text for part in self.parts if isinstance(part, Text | ToolResult))

    @property
    def size(self) -> int:
        """Bytes of UTF-8 of all that is said and thought."""
        return sum(len(part.text.encode()) for part in self.parts if not isinstance(part, ToolCall))

    def last_bytes(self, count: int) -> "Message":
        """The same message, with so many bytes of its end as its only text if it has more."""
        if self.size <= count:
            return self
        end = self.text.encode()[-count:] if count > 0 else b""
        return replace(self, parts=(Text(end.decode("utf-8", "ignore")),))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may ask for."""

    name: str
    description: str
    parameters: Mapping[str, Any]  # JSON Schema


def message_dict(message: Message, clean: Clean) -> dict[str, Any]:
    """A message for a template: role, content, and what else its parts give."""
    fields: dict[str, Any] = {"role": message.role, "content": clean(message.text)}
    thoughts = "".join(part.text for part in message.parts if isinstance(part, Thought))
    if thoughts:
        fields["reasoning_content"] = clean(thoughts)
    calls = [_call_dict(part, clean) for part in message.parts if isinstance(part, ToolCall)]
    if calls:
        fields["tool_calls"] = calls
    for part in message.parts:
        if isinstance(part, ToolResult):
            fields |= {"name": clean(part.name), "tool_call_id": clean(part.id)}
    return fields


def _call_dict(call: ToolCall, clean: Clean) -> dict[str, Any]:
    function = {"name": clean(call.name), "arguments": clean(call.arguments)}
    return {"id": clean(call.id), "type": "function", "function": function}


def tool_dict(tool: Tool, clean: Clean) -> dict[str, Any]:
    """A tool for a template."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": clean(function)}
