"""Events to Ollama's replies: NDJSON chunks whose fixed parts are built once, or one object."""

from collections.abc import Sequence
from typing import Any

from corral.server.faults import Fault, ollama_body
from corral.server.generation import Admitted, Delta, Event, Finished, ScoredToken, WholeReply
from corral.server.wire import encode, finite, present, rfc3339
from corral.text.messages import Text, Thought

NDJSON = "application/x-ndjson"


def last_line(found: Fault) -> bytes:
    """How a stream tells of an error after its headers have gone."""
    return encode(ollama_body(found)) + b"\n"


class OllamaShape:
    """The shape of the reply to one generate or chat request."""

    stream_type = NDJSON
    whole_type = "application/json; charset=utf-8"

    def __init__(self, model: str, *, chat: bool, context: bool = False):
        self.model, self.chat, self.context = model, chat, context
        self.head = b'{"model":' + encode(model) + b',"created_at":"'
        text = b'","message":{"role":"assistant","content":' if chat else b'","response":'
        self.openings = {Text: text, Thought: text + b'"","thinking":'}  # what comes before a delta's text
        self.close = b'},"done":false}\n' if chat else b',"done":false}\n'
        self.admitted: Admitted

    def chunk(self, event: Event) -> bytes:
        """A line for each Delta, and the last one with the statistics."""
        match event:
            case Delta():
                return self._line(event)
            case Finished():
                return encode(self._object("", "", (), self._summary(self.admitted, event))) + b"\n"
            case Admitted():
                self.admitted = event
        return b""

    def end(self) -> bytes:
        """Nothing comes after the statistics."""
        return b""

    def whole(self, admitted: Admitted, replies: Sequence[WholeReply]) -> bytes:
        """One object for all of it."""
        [reply] = replies
        summary = self._summary(admitted, reply.end)
        return encode(self._object(reply.text, reply.thoughts, reply.tokens, summary))

    def last_words(self, found: Fault) -> bytes:
        """How a stream tells of an error after its headers have gone."""
        return last_line(found)

    def done(self, reason: str) -> bytes:
        """The answer to an empty request, which only loads or unloads."""
        return encode(self._object("", "", (), {"done": True, "done_reason": reason}))

    def _line(self, delta: Delta) -> bytes:
        stamp, text = rfc3339().encode(), encode(delta.said.text)
        opening = self.openings[type(delta.said)]
        if not delta.tokens:
            return b"".join((self.head, stamp, opening, text, self.close))
        scores = encode(_logprobs(delta.tokens))
        end = self.close.replace(b',"done"', b',"logprobs":' + scores + b',"done"')
        return b"".join((self.head, stamp, opening, text, end))

    def _object(
        self, text: str, thoughts: str, tokens: tuple[ScoredToken, ...], rest: dict[str, Any]
    ) -> dict[str, Any]:
        thinking = present(thinking=thoughts)
        content: dict[str, Any] = {"response": text, **thinking}
        if self.chat:
            content = {"message": {"role": "assistant", "content": text, **thinking}}
        scores = {"logprobs": _logprobs(tokens)} if tokens else {}
        return {"model": self.model, "created_at": rfc3339(), **content, **scores, **rest}

    def _summary(self, admitted: Admitted, finished: Finished) -> dict[str, Any]:
        stats, prompt = finished.stats, admitted.prompts[0]
        context = [*prompt.ids, *finished.ids] if self.context else None
        return {
            "done": True,
            "done_reason": finished.reason.value,
            **present(context=context),
            "total_duration": finished.total_ns,
            "load_duration": admitted.load_ns,
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
