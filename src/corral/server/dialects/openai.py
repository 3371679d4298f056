"""OpenAI's endpoints: wire request to Generation, and the list of models."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from corral.errors import InvalidRequest
from corral.server.dialects.openai_checks import (
    chat_params,
    chat_scores,
    check,
    completion_params,
    completion_scores,
    read_ending,
    read_think,
)
from corral.server.dialects.openai_shapes import ChatShape, CompletionShape
from corral.server.dialects.openai_types import ChatRequest, CompletionRequest
from corral.server.dialects.openai_types import Message as WireMessage
from corral.server.generation import Conversation, Generation, Prompt, with_system
from corral.server.routes import Row
from corral.server.service import Service
from corral.server.wire import decode, encode
from corral.server.work import Work
from corral.store.local import StoredModel
from corral.text.messages import Message, Role, Text, Thought

MAX_PROMPTS = 128

# OpenAI's roles -> the template's
ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class OpenAI:
    """The endpoints under /v1."""

    def __init__(self, service: Service):
        self.service = service

    def routes(self) -> list[Row]:
        """The table of paths."""
        return [
            Row("GET", "/v1/models", self.models),
            Row("GET", "/v1/models/{id:path}", self.model),
            Row("POST", "/v1/completions", self.completions),
            Row("POST", "/v1/chat/completions", self.chat),
        ]

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        stored = await asyncio.to_thread(self.service.store.list)
        return _json({"object": "list", "data": [_card(model) for model in stored]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{id}; ids contain colons and slashes."""
        return _json(_card(await self.service.find(request.path_params["id"])))

    async def completions(self, request: Request) -> Work:
        """POST /v1/completions."""
        wire = decode(await request.body(), CompletionRequest)
        check(wire)
        prompts = read_prompts(wire.prompt)
        stored = await self.service.find(wire.model)
        generation = Generation(
            model=stored,
            prompts=prompts,
            params=completion_params(wire, stored.params),
            ending=read_ending(wire, stored.params),
            scores=completion_scores(wire),
            n=wire.n or 1,
            echo=bool(wire.echo),
            shrink_to_fit=wire.max_tokens is None,
            add_bos=wire.add_special_tokens is not False,
            skip_special=wire.skip_special_tokens is not False,
        )
        return self.service.answer(generation, CompletionShape(wire), streaming=bool(wire.stream))

    async def chat(self, request: Request) -> Work:
        """POST /v1/chat/completions."""
        wire = decode(await request.body(), ChatRequest)
        check(wire)
        messages = [_message(message, i) for i, message in enumerate(wire.messages)]
        if not messages:
            raise InvalidRequest("[] is too short - 'messages'", "messages")
        stored = await self.service.find(wire.model)
        conversation = Conversation(with_system(messages, stored.system), think=read_think(wire))
        generation = Generation(
            model=stored,
            prompts=(conversation,),
            params=chat_params(wire, stored.params),
            ending=read_ending(wire, stored.params),
            scores=chat_scores(wire),
            n=wire.n or 1,
            skip_special=wire.skip_special_tokens is not False,
        )
        return self.service.answer(generation, ChatShape(wire), streaming=bool(wire.stream))


def read_prompts(wire: str | list[str | int | list[int]]) -> tuple[Prompt, ...]:
    """One text, one list of token ids, or a list of either."""
    if isinstance(wire, str):
        return (wire,)
    if not wire:
        raise InvalidRequest("prompt must not be an empty list", "prompt")
    texts = [item for item in wire if isinstance(item, str)]
    ids = [item for item in wire if isinstance(item, int)]
    lists = [item for item in wire if isinstance(item, list)]
    if len(ids) == len(wire):
        return (ids,)
    if len(wire) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt takes at most {MAX_PROMPTS} prompts, got {len(wire)}", "prompt")
    if len(texts) == len(wire):
        return tuple(texts)
    if len(lists) == len(wire) and all(lists):
        return tuple(lists)
    raise InvalidRequest("prompt must be a text, a list of token ids, or a list of either", "prompt")


def _message(message: WireMessage, place: int) -> Message:
    where = f"messages[{place}]"
    if (
        message.tool_calls
        or message.function_call
        or message.tool_call_id
        or message.role in ("tool", "function")
    ):
        raise InvalidRequest(f"{where}: tool messages are not supported yet", where)
    if message.role not in ROLES:
        known = ", ".join(ROLES)
        raise InvalidRequest(f"{where}.role: '{message.role[:50]}' is not one of {known}", f"{where}.role")
    if message.audio is not None:
        raise InvalidRequest(f"{where}.audio is not supported yet", f"{where}.audio")
    if message.content is None and message.role != "assistant":
        raise InvalidRequest(f"{where}.content must not be null", f"{where}.content")
    thoughts = message.reasoning_content or message.reasoning
    parts = (Thought(thoughts),) if thoughts and message.role == "assistant" else ()
    return Message(ROLES[message.role], (*parts, *_content(message, where)))


def _content(message: WireMessage, where: str) -> list[Text]:
    if not isinstance(message.content, list):
        return [Text(message.content or "")]
    texts = []
    for i, part in enumerate(message.content):
        if part.type not in ("text", "refusal"):
            raise InvalidRequest(
                f"{where}.content[{i}]: parts of type '{part.type[:50]}' are not supported yet; only text is",
                f"{where}.content[{i}].type",
            )
        text = part.text if part.type == "text" else part.refusal
        if text is None:
            raise InvalidRequest(f"{where}.content[{i}].{part.type} is missing", f"{where}.content[{i}]")
        texts.append(Text(text))
    return texts


def _card(stored: StoredModel) -> dict[str, Any]:
    created = int(stored.modified_at.timestamp())
    return {
        "id": stored.name.display,
        "object": "model",
        "created": created,
        "owned_by": stored.name.namespace,
    }


def _json(value: object) -> Response:
    return Response(encode(value), media_type="application/json")
