"""Events to Ollama's replies: NDJSON chunks whose fixed parts are built once, or one object."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from corral.server.generate import collect
from corral.server.generation import Delta, Event, Finished, ScoredToken, Started
from corral.server.wire import encode, finite, present, rfc3339

NDJSON = "application/x-ndjson"


class OllamaReply:
    """Shapes the reply to one generate or chat request."""

    def __init__(self, model: str, *, chat: bool, context: bool = False):
        self.model, self.chat, self.context = model, chat, context
        self.head = b'{"model":' + encode(model) + b',"created_at":"'
        self.text = b'","message":{"role":"assistant","content":' if chat else b'","response":'
        self.close = b"}" if chat else b""

    async def lines(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
        """A line for each Delta, and the last one with the statistics."""
        started: Started | None = None
        async with aclosing(events):
            async for event in events:
                match event:
                    case Started():
                        started = event
                    case Delta():
                        yield self._line(event)
                    case Finished():
                        assert started is not None
                        yield encode(self._object("", (), self._summary(started, event))) + b"\n"

    async def whole(self, events: AsyncGenerator[Event, None]) -> bytes:
        """One object for all of it."""
        started, deltas, finished = await collect(events)
        return encode(self._object(deltas[0].text, deltas[0].tokens, self._summary(started, finished[0])))

    def done(self, reason: str) -> bytes:
        """The answer to an empty request, which only loads or unloads."""
        return encode(self._object("", (), {"done": True, "done_reason": reason}))

    def _line(self, delta: Delta) -> bytes:
        end = b',"logprobs":' + encode(_logprobs(delta.tokens)) if delta.tokens else b""
        text = encode(delta.text)
        stamp = rfc3339().encode()
        return b"".join((self.head, stamp, self.text, text, self.close, end, b',"done":false}\n'))

    def _object(self, text: str, tokens: tuple[ScoredToken, ...], rest: dict[str, Any]) -> dict[str, Any]:
        content = {"message": {"role": "assistant", "content": text}} if self.chat else {"response": text}
        scores = {"logprobs": _logprobs(tokens)} if tokens else {}
        return {"model": self.model, "created_at": rfc3339(), **content, **scores, **rest}

    def _summary(self, started: Started, finished: Finished) -> dict[str, Any]:
        stats, prompt = finished.stats, started.prompts[0]
        context = list(prompt.ids + finished.ids) if self.context else None
        return {
            "done": True,
            "done_reason": finished.reason.value,
            **present(context=context),
            "total_duration": finished.total_ns,
            "load_duration": started.load_ns,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": stats.prefill_ns,
            "eval_count": stats.output_tokens,
            "eval_duration": stats.decode_ns,
            **present(prompt_truncated=prompt.dropped or None),
        }


def _logprobs(tokens: tuple[ScoredToken, ...]) -> list[dict[str, Any]]:
    return [
        {**_logprob(token), **present(top_logprobs=[_logprob(other) for other in token.top or ()])}
        for token in tokens
    ]


def _logprob(token: ScoredToken) -> dict[str, Any]:
    text = token.data.decode("utf-8", "replace")
    return {"token": text, "logprob": finite(token.logprob or 0.0), "bytes": list(token.data)}
