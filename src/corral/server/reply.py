"""One sequence's tokens to text: detokenised, cut at stop strings, scored and timed."""

import time
from collections.abc import Sequence

from corral.engine.protocol import Output
from corral.server.generation import Delta, Event, Finished, Generation, ScoredToken, TokenisedPrompt
from corral.text.detokenizer import Detokenizer
from corral.text.stop import StopMatcher
from corral.text.tokenizer import Tokenizer
from corral.types import FinishReason, SamplingParams, SequenceStats, TokenLogprob


class PromptScores:
    """A prompt's log-probs, shared by its replies; filled by the first."""

    def __init__(self) -> None:
        self.values: Sequence[TokenLogprob | None] = ()

    def fill(self, values: Sequence[TokenLogprob | None]) -> None:
        """Keep what the engine scored; an unscored sibling brings nothing."""
        if values:
            self.values = values


class Reply:
    """What one sequence has said so far. Give it each Output; it gives the events."""

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        generation: Generation,
        params: SamplingParams,
        *,
        prompt_tokens: int,
        begun: int,
    ):
        self.index, self.tokenizer = index, tokenizer
        self.min_tokens, self.scored = params.min_tokens, generation.scores.logprobs is not None
        self.prompt_tokens = prompt_tokens
        self.detokenizer = Detokenizer(tokenizer, skip_special=generation.skip_special)
        self.stop = StopMatcher(generation.ending.stop) if generation.ending.stop else None
        self.finished = False
        self.ids: list[int] = []
        self.length = 0  # characters detokenised, the echoed prompt included
        self.stats = SequenceStats()
        self.plain = self.stop is None and not self.scored
        self.asked = begun  # when the request came, on perf_counter_ns's clock
        self.begun = time.perf_counter_ns()
        self.first = 0

    def echo(self, prompt: TokenisedPrompt, scores: Sequence[TokenLogprob | None]) -> Delta:
        """The prompt as the reply's beginning."""
        tokens = []
        offset = 0
        for token, score in zip(prompt.ids, scores, strict=False):
            tokens.append(self._scored(token, score, offset))
            offset += len(tokens[-1].data.decode("utf-8", "replace"))
        self.length = len(prompt.text)
        return Delta(self.index, prompt.text, tuple(tokens))

    def push(self, output: Output) -> list[Event]:
        """The events of one step."""
        self.first = self.first or time.perf_counter_ns()
        self.stats = output.stats or self.stats
        tokens: list[ScoredToken] = []
        stopped = False
        if self.plain:
            self.ids += output.tokens
            text = self.detokenizer.push(output.tokens)
        else:
            text, tokens, stopped = self._token_by_token(output)
        if output.finish is not None and not stopped:
            rest, stopped = self._last_text()
            text += rest
        events: list[Event] = [Delta(self.index, text, tuple(tokens))] if text or tokens else []
        if stopped or output.finish is not None:
            self.finished = True
            events.append(self._finish(output, stopped))
        return events

    def _token_by_token(self, output: Output) -> tuple[str, list[ScoredToken], bool]:
        text, scored = "", []
        for place, token in enumerate(output.tokens):
            self.ids.append(token)
            if self.scored and not self._ends_silently(output, place):
                score = output.logprobs[place] if place < len(output.logprobs) else None
                scored.append(self._scored(token, score, self.length))
            piece = self.detokenizer.push([token])
            self.length += len(piece)
            shown, stopped = self._until_stop(piece)
            text += shown
            if stopped:
                return text, scored, True
        return text, scored, False

    def _ends_silently(self, output: Output, place: int) -> bool:
        """The control token that ended the reply is not part of what it says."""
        last = output.finish is FinishReason.STOP and place == len(output.tokens) - 1
        return last and self.tokenizer.is_special(output.tokens[place])

    def _until_stop(self, piece: str) -> tuple[str, bool]:
        if self.stop is None or len(self.ids) < self.min_tokens:
            return piece, False
        return self.stop.push(piece)

    def _last_text(self) -> tuple[str, bool]:
        text, stopped = self._until_stop(self.detokenizer.flush())
        if self.stop is not None and not stopped:
            text += self.stop.flush()
        return text, stopped

    def _scored(self, token: int, score: TokenLogprob | None, offset: int) -> ScoredToken:
        data = self.tokenizer.token_bytes(token)
        if score is None:
            return ScoredToken(token, data, None, offset)
        top = tuple(ScoredToken(t, self.tokenizer.token_bytes(t), value) for t, value in score.top)
        return ScoredToken(token, data, score.logprob, offset, top)

    def _finish(self, output: Output, stopped: bool) -> Finished:
        """The engine's own figures, or ours where a stop string ended the reply before the engine did."""
        reason = FinishReason.STOP if stopped else output.finish or FinishReason.STOP
        now, known = time.perf_counter_ns(), self.stats
        if output.finish is not None and output.stats is not None and not stopped:
            return Finished(self.index, reason, output.stats, self.ids, now - self.asked)
        stats = SequenceStats(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=known.cached_tokens,
            output_tokens=len(self.ids),
            queue_ns=known.queue_ns,
            prefill_ns=known.prefill_ns or self.first - self.begun,
            decode_ns=now - self.first,
        )
        return Finished(self.index, reason, stats, self.ids, now - self.asked)
