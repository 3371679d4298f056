"""Events to OpenAI's replies: SSE chunks whose fixed parts are built once, or one object."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from corral import __version__
from corral.server.dialects.openai_types import ChatRequest, CompletionRequest, Sampling
from corral.server.faults import Fault, openai_body
from corral.server.generation import Delta, Event, Finished, ScoredToken, Started
from corral.server.wire import encode, finite

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"fp_corral_{__version__}"


class OpenAIReply(ABC):
    """What the two kinds of reply share; a subclass says how a piece of text looks."""

    stream_type = "text/event-stream; charset=utf-8"
    whole_type = "application/json"
    text_field: bytes  # a choice up to its text, from after its index on
    text_close: bytes  # what then comes before the log-probs

    def __init__(self, wire: Sampling, prefix: str, kind: str, chunk_kind: str):
        self.usage_wanted = bool(wire.stream_options and wire.stream_options.include_usage)
        self.as_ids = bool(wire.return_tokens_as_token_ids)
        self.kind = kind
        self.fixed = {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": wire.model}
        chunk = encode({**self.fixed, "object": chunk_kind, "system_fingerprint": FINGERPRINT})
        self.head = b"data: " + chunk[:-1] + b',"choices":['
        self.tail = b'],"usage":null}\n\n' if self.usage_wanted else b"]}\n\n"

        self.scored = False
        self.heads: dict[int, bytes] = {}  # a reply's chunks up to the text
        self.rest = self.text_close + b',"logprobs":null,"finish_reason":null}' + self.tail
        self.started: Started
        self.finished: list[Finished] = []

    def line(self, event: Event) -> bytes:
        """An event's chunk, behind a reply's opening one if it is the first."""
        match event:
            case Delta(index=index):
                head = self.heads.get(index)
                if head is None:
                    return self._open(index) + self.line(event)
                if self.scored:
                    scores = encode(self._logprobs(event.tokens))
                    middle = self.text_close + b',"logprobs":' + scores
                    return b"".join((head, encode(event.text), middle, b',"finish_reason":null}', self.tail))
                return b"".join((head, encode(event.text), self.rest))
            case Finished(index=index):
                opening = b"" if index in self.heads else self._open(index)
                self.finished.append(event)
                return opening + self.finish(event)
            case Started():
                self.started = event
        return b""

    def end(self) -> bytes:
        """The usage if it is wanted, and [DONE]."""
        return (self._usage_chunk() if self.usage_wanted else b"") + DONE

    def whole(self, started: Started, replies: Sequence[tuple[Delta, Finished]]) -> bytes:
        """The one object of a reply that is not streamed."""
        body = {
            **self.fixed,
            "object": self.kind,
            "choices": [self.choice(delta, end) for delta, end in replies],
            "usage": usage(started, [end for _, end in replies]),
            "system_fingerprint": FINGERPRINT,
        }
        return encode(body)

    def last_words(self, found: Fault) -> bytes:
        """How a stream tells of an error after its headers have gone."""
        return b"data: " + encode(openai_body(found)) + b"\n\n" + DONE

    def _open(self, index: int) -> bytes:
        """Begin a reply: what comes before its first chunk."""
        self.heads[index] = self.head + b'{"index":%d,' % index + self.text_field
        return self.opening(index)

    def opening(self, index: int) -> bytes:
        """What comes before a reply's first chunk."""
        return b""

    @abstractmethod
    def finish(self, end: Finished) -> bytes:
        """A reply's last chunk."""

    @abstractmethod
    def choice(self, delta: Delta, end: Finished) -> dict[str, Any]:
        """A whole reply."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """Tokens with their scores."""

    def chunk(self, *parts: bytes) -> bytes:
        """A chunk around one choice."""
        return b"".join((self.head, *parts, self.tail))

    def name(self, token: ScoredToken) -> str:
        """A token as the client wants to see it."""
        return f"token_id:{token.id}" if self.as_ids else token.data.decode("utf-8", "replace")

    def _usage_chunk(self) -> bytes:
        return self.head + b'],"usage":' + encode(usage(self.started, self.finished)) + b"}\n\n"


class CompletionReply(OpenAIReply):
    """/v1/completions."""

    text_field = b'"text":'
    text_close = b""

    def __init__(self, wire: CompletionRequest):
        super().__init__(wire, "cmpl", "text_completion", "text_completion")
        self.scored = wire.logprobs is not None

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

    text_field = b'"delta":{"content":'
    text_close = b"}"

    def __init__(self, wire: ChatRequest):
        super().__init__(wire, "chatcmpl", "chat.completion", "chat.completion.chunk")
        self.scored = bool(wire.logprobs)

    def opening(self, index: int) -> bytes:
        """The chunk with the role."""
        return self.chunk(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            % index
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
