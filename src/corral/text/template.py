"""A model's own chat template: a conversation to a prompt."""

import contextlib
import functools
import re
import threading
from collections.abc import Sequence
from typing import Any

from corral.errors import CorralError, InvalidRequest, UnsupportedModel
from corral.text.default_templates import default_template
from corral.text.messages import Message, Text, Tool, ToolCall, ToolResult, message_dict, tool_dict
from corral.text.parsers.parser import Parser, PlainParser
from corral.text.parsers.table import MakeParser, find_parser
from corral.text.render_frames import TemplateFailed
from corral.text.renderer import Renderer, shared_renderer
from corral.text.seals import Seals
from corral.text.tokenizer import Tokenizer
from corral.weights.source import DEFAULT_TEMPLATE, TextAssets

__all__ = ["ChatTemplate", "load_template"]

MAX_SOURCE = 128 << 10  # characters; several times the longest template in use
# Marks which tokens are trained on; says nothing about the text.
GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")


# Conversations that show which control tokens a template puts together from pieces.
_HELLO, _MORE = (Message("user", (Text(text),)) for text in ("hello", "more"))
_CALL = Message("assistant", (ToolCall("call00001", "look", {"at": "it"}),))
_SEEN = Message("tool", (ToolResult("call00001", "look", "seen"),))
_LOOK = Tool("look", "looks", {"type": "object", "properties": {}})
_PROBES: tuple[tuple[Sequence[Message], Sequence[Tool]], ...] = (
    ((_HELLO,), ()),
    ((Message("system", (Text("brief"),)), _HELLO, Message("assistant", (Text("yes"),)), _MORE), ()),
    ((_HELLO, _CALL, _SEEN), (_LOOK,)),
)


class ChatTemplate:
    """Renders conversations. What a conversation says never becomes a control token; see seals.py."""

    def __init__(self, source: str, tokenizer: Tokenizer, renderer: Renderer | None = None):
        self.source = source
        self._renderer = renderer or shared_renderer()
        self._tokenizer = tokenizer
        self._broken: str | None = None
        self._lock = threading.Lock()
        self._prepared = False

    def prepare(self) -> None:
        """Learn about the template what rendering needs, which takes time; whoever is first does it."""
        with self._lock:
            if not self._prepared:
                self._study()
                self._prepared = True

    def _study(self) -> None:
        source = self.source
        if len(source) > MAX_SOURCE:
            self._broken = (
                f"the model's chat template is too long: {len(source)} characters, not {MAX_SOURCE}"
            )
            source = ""
        self._seals = Seals(self._tokenizer, GENERATION_TAG.sub("", source))
        for probe in _PROBES:
            with contextlib.suppress(CorralError):  # no tools, no system role
                self._seals.learn(self._render(*probe))

    def render(self, messages: Sequence[Message], tools: Sequence[Tool] = (), **options: Any) -> str:
        """The prompt as text. Options as in `encode`."""
        self.prepare()
        return self._seals.text(self._render(messages, tools, **options))

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = (), **options: Any) -> list[int]:
        """The prompt's token ids, with one BOS if the model wants it or the template writes it.

        Options: add_generation_prompt (True), documents (None), what else the template reads.
        """
        self.prepare()
        parts = self._seals.parts(self._render(messages, tools, **options))
        bos = self._tokenizer.bos_id
        return self._tokenizer.encode_parts(parts, add_bos=self._tokenizer.add_bos and parts[:1] != [bos])

    @functools.cached_property
    def supports_system(self) -> bool:
        """Whether a system message reaches the prompt."""
        try:
            return "probe0" in self.render([Message("system", (Text("probe0"),)), _HELLO])
        except CorralError:
            return False

    @functools.cached_property
    def _make_parser(self) -> MakeParser | None:
        return find_parser(self.source)

    @property
    def supports_thinking(self) -> bool:
        """Whether the model tells its thoughts from what it says."""
        return self._make_parser is not None

    def parser(self, prompt: Sequence[int]) -> Parser:
        """What reads a reply to a prompt of `encode`'s."""
        return self._make_parser(self._tokenizer, prompt) if self._make_parser else PlainParser()

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool],
        *,
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> str:
        if self._broken:
            raise UnsupportedModel(self._broken)
        defuse = self._seals.defuse
        try:
            context = {
                "documents": None,
                **defuse(options),
                "messages": [message_dict(message, defuse) for message in messages],
                "tools": [tool_dict(tool, defuse) for tool in tools] or None,
                **self._seals.names,
                "add_generation_prompt": add_generation_prompt,
            }
            return self._renderer.render(self._seals.source, context)
        except TemplateFailed as error:
            if error.kind == "syntax":
                raise UnsupportedModel(f"the model's chat template cannot be used: {error.message}") from None
            reason = self._seals.text(error.message)
            failed = "" if error.kind == "raised" else "the model's chat template failed: "
            raise InvalidRequest(failed + reason, "messages") from None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:  # bottomless messages, say
            raise InvalidRequest(f"the conversation cannot be rendered: {error}", "messages") from None


def load_template(assets: TextAssets, tokenizer: Tokenizer) -> ChatTemplate:
    """The model's default template, or the one that its control tokens suggest."""
    source = assets.templates.get(DEFAULT_TEMPLATE)
    return ChatTemplate(default_template(tokenizer) if source is None else source, tokenizer)
