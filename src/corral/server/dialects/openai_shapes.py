"""Events to OpenAI's replies: SSE chunks whose fixed parts are built once, or one object."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from corral import __version__
from corral.server.dialects.openai_types import ChatRequest, CompletionRequest, Sampling
from corral.server.faults import Fault, openai_body
from corral.server.generation import Admitted, Delta, Event, Finished, ScoredToken, WholeReply
from corral.server.wire import encode, finite, present
from corral.text.messages import Text, Thought

DONE = b"data: [DONE]\n\n"
FINGERPRINT = f"fp_corral_{__version__}"


class OpenAIShape(ABC):
    """What the shapes of the two endpoints share; a subclass says how a delta looks."""

    stream_type = "text/event-stream; charset=utf-8"
    whole_type = "application/json"
    openings: Mapping[type, bytes]  # by what is said: a choice up to its text, from after its index on
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
        self.heads: dict[int, bytes] = {}  # a reply's chunks up to what is said
        self.rest = self.text_close + b',"logprobs":null,"finish_reason":null}' + self.tail
        self.admitted: Admitted
        self.finished: list[Finished] = []

    def chunk(self, event: Event) -> bytes:
        """An event's chunk, behind a reply's opening one if it is the first."""
        match event:
            case Delta(index=index, said=said):
                head = self.heads.get(index)
                if head is None:
                    return self._open(index) + self.chunk(event)
                rest = self._scored_rest(event.tokens) if self.scored else self.rest
                return b"".join((head, self.openings[type(said)], encode(said.text), rest))
            case Finished(index=index):
                opening = b"" if index in self.heads else self._open(index)
                self.finished.append(event)
                return opening + self.finish(event)
            case Admitted():
                self.admitted = event
        return b""

    def _scored_rest(self, tokens: Sequence[ScoredToken]) -> bytes:
        """What comes behind a delta's text where log-probs are wanted."""
        scores = encode(self._logprobs(tokens))
        return b"".join((self.text_close, b',"logprobs":', scores, b',"finish_reason":null}', self.tail))

    def end(self) -> bytes:
        """The usage if it is wanted, and [DONE]."""
        return (self._usage_chunk() if self.usage_wanted else b"") + DONE

    def whole(self, admitted: Admitted, replies: Sequence[WholeReply]) -> bytes:
        """The one object of a reply that is not streamed."""
        body = {
            **self.fixed,
            "object": self.kind,
            "choices": [self.choice(reply) for reply in replies],
            "usage": usage(admitted, [reply.end for reply in replies]),
            "system_fingerprint": FINGERPRINT,
        }
        return encode(body)

    def last_words(self, found: Fault) -> bytes:
        """How a stream tells of an error after its headers have gone."""
        return b"data: " + encode(openai_body(found)) + b"\n\n" + DONE

    def _open(self, index: int) -> bytes:
        """Begin a reply: what comes before its first chunk."""
        self.heads[index] = self.head + b'{"index":%d,' % index
        return self.opening(index)

    def opening(self, index: int) -> bytes:
        """What comes before a reply's first chunk."""
        return b""

    @abstractmethod
    def finish(self, end: Finished) -> bytes:
        """A reply's last chunk."""

    @abstractmethod
    def choice(self, reply: WholeReply) -> dict[str, Any]:
        """A whole reply."""

    @abstractmethod
    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """Tokens with their scores."""

    def around(self, *parts: bytes) -> bytes:
        """A chunk around one choice."""
        return b"".join((self.head, *parts, self.tail))

    def name(self, token: ScoredToken) -> str:
        """A token as the client wants to see it."""
        return f"token_id:{token.id}" if self.as_ids else token.data.decode("utf-8", "replace")

    def _usage_chunk(self) -> bytes:
        return self.head + b'],"usage":' + encode(usage(self.admitted, self.finished)) + b"}\n\n"


class CompletionShape(OpenAIShape):
    """/v1/completions."""

    openings = MappingProxyType({Text: b'"text":'})
    text_close = b""

    def __init__(self, wire: CompletionRequest):
        super().__init__(wire, "cmpl", "text_completion", "text_completion")
        self.scored = wire.logprobs is not None

    def finish(self, end: Finished) -> bytes:
        """The chunk with the reason."""
        reason = encode(end.reason.value)
        return self.around(
            b'{"index":%d,"text":"","logprobs":null,"finish_reason":' % end.index, reason, b"}"
        )

    def choice(self, reply: WholeReply) -> dict[str, Any]:
        """A whole reply."""
        return {
            "index": reply.end.index,
            "text": reply.text,
            "logprobs": self._logprobs(reply.tokens) if self.scored else None,
            "finish_reason": reply.end.reason.value,
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


class ChatShape(OpenAIShape):
    """/v1/chat/completions. Thoughts have the name that DeepSeek gave them, which most clients read."""

    openings = MappingProxyType({Text: b'"delta":{"content":', Thought: b'"delta":{"reasoning_content":'})
    text_close = b"}"

    def __init__(self, wire: ChatRequest):
        super().__init__(wire, "chatcmpl", "chat.completion", "chat.completion.chunk")
        self.scored = bool(wire.logprobs)

    def opening(self, index: int) -> bytes:
        """The chunk with the role."""
        return self.around(
            b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
            % index
        )

    def finish(self, end: Finished) -> bytes:
        """The chunk with the reason."""
        reason = encode(end.reason.value)
        return self.around(
            b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":' % end.index, reason, b"}"
        )

    def choice(self, reply: WholeReply) -> dict[str, Any]:
        """A whole reply."""
        said = {"content": reply.text, **present(reasoning_content=reply.thoughts)}
        return {
            "index": reply.end.index,
            "message": {"role": "assistant", **said, "refusal": None},
            "logprobs": self._logprobs(reply.tokens) if self.scored else None,
            "finish_reason": reply.end.reason.value,
        }

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        content = [
            {**self._logprob(token), "top_logprobs": [self._logprob(other) for other in token.top or ()]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _logprob(self, token: ScoredToken) -> dict[str, Any]:
        return {"token": self.name(token), "logprob": finite(token.logprob or 0.0), "bytes": list(token.data)}


def usage(admitted: Admitted, finished: Iterable[Finished]) -> dict[str, Any]:
    """Each prompt counts once, however many replies it has."""
    ends = {end.index: end for end in finished}
    replies = max(1, len(ends) // len(admitted.prompts))
    prompt = sum(len(prompt.ids) for prompt in admitted.prompts)
    completion = sum(end.stats.output_tokens for end in ends.values())
    cached = sum(ends[i].stats.cached_tokens for i in range(0, len(ends), replies))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
