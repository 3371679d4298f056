"""Events to OpenAI's replies: SSE chunks whose fixed parts are built once, or one object."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from typing import Any

from corral import __version__
from corral.server.dialects.openai_types import ChatRequest, CompletionRequest, Sampling
from corral.server.faults import Fault, openai_body
from corral.server.generate import collect
from corral.server.generation import Delta, Event, Finished, ScoredToken, Started
from corral.server.wire import encode, finite

EVENT_STREAM = "text/event-stream; charset=utf-8"
DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"fp_corral_{__version__}"


def last_event(found: Fault) -> bytes:
    """How a stream tells of an error after its headers have gone."""
    return b"data: " + encode(openai_body(found)) + b"\n\n" + DONE


class OpenAIReply(ABC):
    """What the two kinds of reply share; a subclass says how a piece of text looks."""

    def __init__(self, wire: Sampling, prefix: str, kind: str, chunk_kind: str):
        self.usage_wanted = bool(wire.stream_options and wire.stream_options.include_usage)
        self.as_ids = bool(wire.return_tokens_as_token_ids)
        self.kind = kind
        self.fixed = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wire.model}
        chunk = encode({**self.fixed, "object": chunk_kind, "system_fingerprint": FINGERPRINT})
        self.head = b"data: " + chunk[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if self.usage_wanted else b"]}\n\n"

    async def lines(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        """The stream: opening chunks, deltas, a finish for each reply, usage if wanted, [DONE]."""
        opened: set[int] = set()
        started: Started | None = None
        finished: list[Finished] = []
        async with aclosing(events):
            async for event in events:
                if isinstance(event, Started):
                    started = event
                    continue
                opening = b"" if event.index in opened else self.opening(event.index)
                opened.add(event.index)
                if isinstance(event, Finished):
                    finished.append(event)
                    yield opening + self.finish(event)
                else:
                    yield opening + self.delta(event)
        assert started is not None
        yield (self._usage_chunk(started, finished) if self.usage_wanted else b"") + DONE

    async def whole(self, events: AsyncGenerator[Event, None]) -> bytes:
        """The one object of a reply that is not streamed."""
        started, deltas, finished = await collect(events)
        choices = [self.choice(delta, end) for delta, end in zip(deltas, finished, strict=True)]
        body = {
            **self.fixed,
            "object": self.kind,
            "choices": choices,
            "usage": usage(started, finished),
            "system_fingerprint": FINGERPRINT,
        }
        return encode(body)

    def opening(self, index: int) -> bytes:
        """What comes before a reply's first chunk."""
        return b""

    @abstractmethod
    def delta(self, delta: Delta) -> bytes:
        """A chunk with text."""

    @abstractmethod
    def finish(self, end: Finished) -> bytes:
        """A reply's last chunk."""

    @abstractmethod
    def choice(self, delta: Delta, end: Finished) -> dict[str, Any]:
        """A whole reply."""

    def chunk(self, *parts: bytes) -> bytes:
        """A chunk around one choice."""
        return b"".join((self.head, *parts, self.tail))

    def name(self, token: ScoredToken) -> str:
        """A token as the client wants to see it."""
        return f"token_id:{token.id}" if self.as_ids else token.data.decode("utf-8", "replace")

    def _usage_chunk(self, started: Started, finished: Iterable[Finished]) -> bytes:
        return self.head + b'],"usage":' + encode(usage(started, finished)) + b"}\n\n"


class CompletionReply(OpenAIReply):
    """/v1/completions."""

    def __init__(self, wire: CompletionRequest):
        super().__init__(wire, "cmpl", "text_completion", "text_completion")
        self.scored = wire.logprobs is not None

    def delta(self, delta: Delta) -> bytes:
        """A chunk with text."""
        scores = b"null" if not self.scored else encode(self._logprobs(delta.tokens))
        text = encode(delta.text)
        index = b"%d" % delta.index
        return self.chunk(
            b'{"index":', index, b',"text":', text, b',"logprobs":', scores, b',"finish_reason":null}'
        )

    def finish(self, end: Finished) -> bytes:
        """The chunk with the reason."""
        reason = encode(end.reason.value)
        return self.chunk(b'{"index":%d,"text":"","logprobs":null,"finish_reason":' % end.index, reason, b"}")

    def choice(self, delta: Delta, end: Finished) -> dict[str, Any]:
        """A whole reply."""
        return {
            "index": end.index,
            "text": delta.text,
            "logprobs": self._logprobs(delta.tokens) if self.scored else None,
            "finish_reason": end.reason.value,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        return {
            "text_offset": [token.offset for token in tokens],
            "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
            "tokens": [self.name(token) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
        }

    def _top(self, token: ScoredToken) -> dict[str, float] | None:
        """Best first: of several tokens that look the same, the likelier one counts."""
        if token.top is None:
            return None
        return {self.name(other): finite(other.logprob or 0.0) for other in reversed(token.top)}


class ChatReply(OpenAIReply):
    """/v1/chat/completions."""

    def __init__(self, wire: ChatRequest):
        super().__init__(wire, "chatcmpl", "chat.completion", "chat.completion.chunk")
        self.scored = bool(wire.logprobs)

    def opening(self, index: int) -> bytes:
        """The chunk with the role."""
        return self.chunk(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            % index
        )

    def delta(self, delta: Delta) -> bytes:
        """A chunk with text."""
        scores = b"null" if not self.scored else encode(self._logprobs(delta.tokens))
        text = encode(delta.text)
        return self.chunk(
            b'{"index":%d,"delta":{"content":' % delta.index,
            text,
            b'},"logprobs":',
            scores,
            b',"finish_reason":null}',
        )

    def finish(self, end: Finished) -> bytes:
        """The chunk with the reason."""
        reason = encode(end.reason.value)
        return self.chunk(
            b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % end.index, reason, b"}"
        )

    def choice(self, delta: Delta, end: Finished) -> dict[str, Any]:
        """A whole reply."""
        return {
            "index": end.index,
            "message": {"role": "assistant", "content": delta.text, "refusal": None},
            "logprobs": self._logprobs(delta.tokens) if self.scored else None,
            "finish_reason": end.reason.value,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        content = [
            {**self._logprob(token), "top_logprobs": [self._logprob(other) for other in token.top or ()]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, token: ScoredToken) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": finite(token.logprob or 0.0), "bytes": list(token.data)}


def usage(started: Started, finished: Iterable[Finished]) -> dict[str, Any]:
    """Each prompt counts once, however many replies it has."""
    ends = {end.index: end for end in finished}
    replies = max(1, len(ends) // len(started.prompts))
    prompt = sum(len(prompt.ids) for prompt in started.prompts)
    completion = sum(end.stats.output_tokens for end in ends.values())
    cached = sum(ends[i].stats.cached_tokens for i in range(0, len(ends), replies))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
