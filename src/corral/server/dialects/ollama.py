"""Ollama's /api/generate and /api/chat: wire request to Generation."""

from starlette.requests import Request

from corral.errors import InvalidRequest
from corral.server.dialects.ollama_options import read_keep_alive, read_options
from corral.server.dialects.ollama_shape import OllamaShape
from corral.server.dialects.ollama_types import ChatRequest, GenerateRequest, Generating
from corral.server.dialects.ollama_types import Message as WireMessage
from corral.server.generation import Conversation, Generation, Overflow, Prompt, Think, with_system
from corral.server.routes import Row
from corral.server.service import Service
from corral.server.wire import decode
from corral.server.work import Work, single
from corral.store.local import StoredModel
from corral.text.messages import Message, Role, Text, Thought
from corral.types import MAX_TOP_LOGPROBS, Scores

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
EFFORTS = ("low", "medium", "high", "max")


class OllamaText:
    """The endpoints that generate."""

    def __init__(self, service: Service):
        self.service = service

    def routes(self) -> list[Row]:
        """The table of paths."""
        return [
            Row("POST", "/api/generate", self.generate),
            Row("POST", "/api/chat", self.chat),
        ]

    async def generate(self, request: Request) -> Work:
        """POST /api/generate."""
        wire = decode(await request.body(), GenerateRequest)
        _check_common(wire)
        _check_generate(wire)
        stored = await self.service.find(wire.model)
        if not wire.prompt:
            return self._load_or_unload(wire, stored, OllamaShape(wire.model, chat=False))
        shape = OllamaShape(wire.model, chat=False, context=not wire.raw)
        return self._answer(wire, self._generation(wire, stored, _prompt(wire, stored)), shape)

    async def chat(self, request: Request) -> Work:
        """POST /api/chat."""
        wire = decode(await request.body(), ChatRequest)
        _check_common(wire)
        if wire.tools:
            raise InvalidRequest(f"{wire.model} does not support tools", "tools")
        messages = [_message(message, i) for i, message in enumerate(wire.messages or ())]
        stored = await self.service.find(wire.model)
        shape = OllamaShape(wire.model, chat=True)
        if not messages:
            return self._load_or_unload(wire, stored, shape)
        conversation = Conversation(with_system(messages, stored.system), think=_think(wire))
        return self._answer(wire, self._generation(wire, stored, conversation), shape)

    def _generation(self, wire: Generating, stored: StoredModel, prompt: Prompt) -> Generation:
        options = read_options(stored.params, wire.options)
        return Generation(
            model=stored,
            prompts=(prompt,),
            params=options.params,
            ending=options.ending,
            scores=Scores((wire.top_logprobs or 0) if wire.logprobs else None),
            overflow=Overflow(
                cut=wire.truncate is not False, shift=wire.shift is not False, keep=options.num_keep
            ),
            keep_alive=read_keep_alive(wire.keep_alive),
        )

    def _answer(self, wire: Generating, generation: Generation, shape: OllamaShape) -> Work:
        return self.service.answer(generation, shape, streaming=wire.stream is not False)

    def _load_or_unload(self, wire: Generating, stored: StoredModel, shape: OllamaShape) -> Work:
        keep_alive = read_keep_alive(wire.keep_alive)
        pool = self.service.pool

        async def load() -> bytes:
            async with pool.lease(stored, keep_alive=keep_alive):
                return shape.done("load")

        async def unload() -> bytes:
            await pool.unload(wire.model)
            return shape.done("unload")

        return single(self.service.drain, unload if keep_alive == 0 else load)


def _check_common(wire: Generating) -> None:
    """Refuse what would change the shape and cannot be done."""
    if not wire.model:
        raise InvalidRequest("model is required", "model")
    if isinstance(wire.think, str) and wire.think not in ("", *EFFORTS):
        raise InvalidRequest(f"think must be a boolean or one of {', '.join(EFFORTS)}", "think")
    if wire.format not in (None, ""):
        raise InvalidRequest("format is not supported yet; leave it out", "format")
    if wire.debug_render_only:
        raise InvalidRequest("_debug_render_only is not supported", "_debug_render_only")
    if not 0 <= (wire.top_logprobs or 0) <= MAX_TOP_LOGPROBS:
        raise InvalidRequest(f"top_logprobs must be between 0 and {MAX_TOP_LOGPROBS}", "top_logprobs")


def _check_generate(wire: GenerateRequest) -> None:
    if wire.raw and (wire.template or wire.system or wire.context):
        raise InvalidRequest("raw mode does not support template, system, or context", "raw")
    if wire.raw and wire.think:
        raise InvalidRequest("raw mode does not support think; write it into the prompt", "think")
    if wire.suffix:
        raise InvalidRequest(f"{wire.model} does not support insert", "suffix")
    if wire.template:
        raise InvalidRequest("template is not supported; use raw with a prompt rendered by you", "template")
    if wire.images:
        raise InvalidRequest(f"{wire.model} does not support images", "images")


def _prompt(wire: GenerateRequest, stored: StoredModel) -> Prompt:
    text = wire.prompt or ""
    if wire.raw:
        return text
    system = stored.system if wire.system is None else wire.system
    message = Message("user", (Text(text),))
    return Conversation(with_system([message], system), wire.context or (), _think(wire))


def _think(wire: Generating) -> Think | None:
    if wire.think in (None, ""):
        return None
    return Think(bool(wire.think), wire.think if isinstance(wire.think, str) else "")


def _message(message: WireMessage, place: int) -> Message:
    where = f"messages[{place}]"
    role = message.role.lower()
    if message.images:
        raise InvalidRequest(f"{where}.images: images are not supported yet", f"{where}.images")
    if role == "tool" or message.tool_calls:
        raise InvalidRequest(f"{where}: tool messages are not supported yet", where)
    if role not in ROLES:
        raise InvalidRequest(
            f"{where}.role: '{message.role[:50]}' is not one of {', '.join(ROLES)}", f"{where}.role"
        )
    thoughts = (Thought(message.thinking),) if message.thinking and role == "assistant" else ()
    return Message(ROLES[role], (*thoughts, Text(message.content or "")))
