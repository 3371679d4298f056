"""One sequence's tokens to events: detokenised, parsed, cut at stop strings, scored and timed."""

import itertools
import time
from collections.abc import Iterable, Sequence

from corral.engine.protocol import Output
from corral.pool.pool import LoadedModel
from corral.server.generation import Delta, Event, Finished, Generation, ScoredToken, TokenisedPrompt
from corral.text.detokenizer import Detokenizer
from corral.text.messages import Text
from corral.text.parsers.parser import Parser, PlainParser, Said
from corral.text.stop import StopMatcher
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
    """What one sequence has said so far: each Output of the engine's is pushed, and gives events.

    Stop strings are looked for in what is said, not in thoughts.
    """

    def __init__(
        self,
        index: int,
        model: LoadedModel,
        generation: Generation,
        params: SamplingParams,
        prompt: TokenisedPrompt,
        *,
        asked: int,
    ):
        self.index, self.prompt, self.tokenizer = index, prompt, model.tokenizer
        self.min_tokens, self.scored = params.min_tokens, generation.scores.logprobs is not None
        self.parser: Parser = model.template.parser(prompt.ids) if prompt.chat else PlainParser()
        self.detokenizer = Detokenizer(
            model.tokenizer, skip_special=generation.skip_special, markers=self.parser.markers
        )
        self.stop = StopMatcher(generation.ending.stop) if generation.ending.stop else None
        self.finished = False
        self.ids: list[int] = []
        self.length = 0  # characters detokenised, the echoed prompt included
        self.stats = SequenceStats()
        self.plain = self.stop is None and not self.scored and isinstance(self.parser, PlainParser)
        self.asked = asked  # when the request came, in ns on perf_counter's clock, as are the next two
        self.begun = time.perf_counter_ns()
        self.first = 0

    def echo(self, scores: Sequence[TokenLogprob | None]) -> Delta:
        """The prompt as the reply's beginning."""
        tokens = []
        offset = 0
        for token, score in zip(self.prompt.ids, scores, strict=False):
            tokens.append(self._scored(token, score, offset))
            offset += len(tokens[-1].data.decode("utf-8", "replace"))
        self.length = len(self.prompt.text)
        return Delta(self.index, Text(self.prompt.text), tuple(tokens))

    def push(self, output: Output) -> list[Event]:
        """The events of one step."""
        self.first = self.first or time.perf_counter_ns()
        self.stats = output.stats or self.stats
        events, stopped = self._plain_text(output) if self.plain else self._parsed(output)
        if stopped or output.finish is not None:
            self.finished = True
            events.append(self._finish(output, stopped))
        return events

    def _plain_text(self, output: Output) -> tuple[list[Event], bool]:
        """The short way of nearly every token."""
        self.ids += output.tokens
        text = self.detokenizer.push(output.tokens)
        if output.finish is not None:
            text += self.detokenizer.flush()
        return [Delta(self.index, Text(text))] if text else [], False

    def _parsed(self, output: Output) -> tuple[list[Event], bool]:
        """What the output says, and whether a stop string has ended the reply."""
        said, tokens, stopped = self._token_by_token(output)
        if output.finish is not None and not stopped:
            rest, stopped = self._rest()
            said += rest
        return self._deltas(said, tuple(tokens)), stopped

    def _deltas(self, said: Iterable[Said], tokens: tuple[ScoredToken, ...]) -> list[Event]:
        """One delta for neighbours of a kind; the first brings the scored tokens."""
        deltas: list[Event] = []
        for kind, parts in itertools.groupby(said, type):
            text = "".join(part.text for part in parts)
            if text:
                deltas.append(Delta(self.index, kind(text), tokens))
                tokens = ()
        return deltas if not tokens else [Delta(self.index, Text(""), tokens)]

    def _token_by_token(self, output: Output) -> tuple[list[Said], list[ScoredToken], bool]:
        said: list[Said] = []
        scored: list[ScoredToken] = []
        for place, token in enumerate(output.tokens):
            self.ids.append(token)
            if self.scored and not self._ends_silently(output, place):
                score = output.logprobs[place] if place < len(output.logprobs) else None
                scored.append(self._scored(token, score, self.length))
            pieces = self.detokenizer.pieces((token,))
            self.length += sum(len(piece) for piece in pieces if isinstance(piece, str))
            shown, stopped = self._until_stop(self.parser.push(pieces))
            said += shown
            if stopped:
                return said, scored, True
        return said, scored, False

    def _ends_silently(self, output: Output, place: int) -> bool:
        """The control token that ended the reply is not part of what it says."""
        last = output.finish is FinishReason.STOP and place == len(output.tokens) - 1
        return last and self.tokenizer.is_special(output.tokens[place])

    def _until_stop(self, said: list[Said]) -> tuple[list[Said], bool]:
        if self.stop is None or len(self.ids) < self.min_tokens:
            return said, False
        shown: list[Said] = []
        for part in said:
            if not isinstance(part, Text):
                shown.append(part)
                continue
            text, stopped = self.stop.push(part.text)
            shown.append(Text(text))
            if stopped:
                return shown, True
        return shown, False

    def _rest(self) -> tuple[list[Said], bool]:
        """What detokeniser, parser and stop strings have kept back, at the reply's end."""
        said = [*self.parser.push([self.detokenizer.flush()]), *self.parser.flush()]
        shown, stopped = self._until_stop(said)
        if self.stop is not None and not stopped:
            shown.append(Text(self.stop.flush()))
        return shown, stopped

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
            prompt_tokens=len(self.prompt.ids),
            cached_tokens=known.cached_tokens,
            output_tokens=len(self.ids),
            queue_ns=known.queue_ns,
            prefill_ns=known.prefill_ns or self.first - self.begun,
            decode_ns=now - self.first,
        )
        return Finished(self.index, reason, stats, self.ids, now - self.asked)
