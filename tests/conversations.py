"""Conversations for tests: typed messages and tools of the plain form that transformers has."""

from collections.abc import Mapping
from typing import Any

from corral.text.messages import Message, Part, Text, Thought, Tool, ToolCall, ToolResult


def user(text: str) -> list[Message]:
    return [said("user", text)]


def said(role: Any, text: str) -> Message:
    return Message(role, (Text(text),))


def typed(conversation: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ChatTemplate.encode for messages and tools as plain dicts."""
    messages = [_message(message) for message in conversation["messages"]]
    tools = [Tool(**tool["function"]) for tool in conversation.get("tools", ())]
    return {**conversation, "messages": messages, "tools": tools}


def _message(plain: Mapping[str, Any]) -> Message:
    if plain["role"] == "tool":
        result = ToolResult(plain["tool_call_id"], plain["name"], plain["content"])
        return Message("tool", (result,))
    parts: list[Part] = [Text(plain["content"])]
    if "reasoning_content" in plain:
        parts.insert(0, Thought(plain["reasoning_content"]))
    parts += [ToolCall(call["id"], **call["function"]) for call in plain.get("tool_calls", ())]
    return Message(plain["role"], tuple(parts))
