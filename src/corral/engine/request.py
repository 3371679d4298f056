"""A request inside the engine: a sequence, how to sample it, when it ends, and where its time went."""

import random
import time

import numpy as np

from corral.engine.admission import Limits
from corral.engine.drafts import Drafts
from corral.engine.penalties import PenaltyCounts, wants_penalties
from corral.engine.sequence import Sequence
from corral.executors.batch import F32, I32
from corral.types import FinishReason, SamplingParams, Scores, SequenceStats, TokenLogprob


class Request:
    """Everything that the engine keeps for one request."""

    def __init__(self, id: int, prompt: list[int], params: SamplingParams, scores: Scores, limits: Limits):
        # What every step looks at comes first, so that it lies together.
        self.id = id
        self.scoring = scores.prompt_logprobs is not None
        self.replies = params.max_tokens != 0
        # The last prompt token is computed for the sake of the first reply token only.
        tokens = prompt.copy() if self.replies else prompt[:-1]
        self.sequence = Sequence(id, tokens, sharing=not self.scoring)
        self.slot = -1  # row in the batch arrays while running
        self.listed = 0  # entries of each block table already written to that row
        self.stops = frozenset(params.stop_token_ids)
        self.limit = _limit(len(prompt), params, limits)
        self.penalties = PenaltyCounts(tokens, params.penalty_window) if wants_penalties(params) else None
        self.biased = bool(params.logit_bias or params.min_tokens)
        self.started = self.first = self.last = 0
        self.params, self.scores = params, scores
        self.prompt = prompt
        self.seed = random.getrandbits(64) if params.seed is None else params.seed & (2**64 - 1)
        self.drafts = Drafts(tokens) if self.replies else None
        self.bias = _bias_arrays(dict(params.logit_bias))
        banned = dict.fromkeys(self.stops, -np.inf) if params.min_tokens else {}
        self.early_bias = _bias_arrays({**params.logit_bias, **banned}) if banned else self.bias
        self.scored: list[TokenLogprob | None] = [None] if self.scoring else []
        self.arrived = time.monotonic_ns()

    @property
    def replied(self) -> int:
        """Tokens sampled so far."""
        return len(self.sequence.tokens) - len(self.prompt) if self.replies else 0

    def bias_of(self, index: int) -> tuple[I32, F32]:
        """Ids and values to add to the logits of a token of the reply; what ends it too early is banned."""
        return self.early_bias if index < self.params.min_tokens else self.bias

    def guess(self, needed: float) -> None:
        """Draft the tokens that are at least so likely to come, if the request decodes."""
        sequence = self.sequence
        if self.drafts and sequence.tables and sequence.pending == 1:
            # The step samples one token more than its drafts, which is at most the last.
            sequence.drafts = self.drafts.propose(self.limit - len(sequence.tokens) - 1, needed)

    def scored_positions(self, start: int, count: int) -> range:
        """Of positions start .. start + count, those whose logits score a prompt token for the first time."""
        if not self.scoring:
            return range(0)
        return range(max(start, len(self.scored) - 1), min(start + count, len(self.prompt) - 1))

    def push(self, token: int, now: int) -> FinishReason | None:
        """Take a sampled token; says whether it was the last."""
        self.sequence.tokens.append(token)
        if self.penalties:
            self.penalties.push()
        self.first = self.first or now
        self.last = now
        if token in self.stops:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self.sequence.tokens) >= self.limit else None

    def stats(self) -> SequenceStats:
        """Counts and durations up to now."""
        now = time.monotonic_ns()
        started = self.started or now
        first = self.first or now
        return SequenceStats(
            prompt_tokens=len(self.prompt),
            cached_tokens=self.sequence.cached or 0,
            output_tokens=self.replied,
            queue_ns=started - self.arrived,
            prefill_ns=first - started,
            decode_ns=(self.last or first) - first,
        )


def _limit(prompt: int, params: SamplingParams, limits: Limits) -> int:
    """Known tokens at which a reply ends. The last token needs no place in the KV cache."""
    wanted = prompt + params.max_tokens if params.max_tokens is not None else limits.context_length
    return min(limits.context_of(params), wanted, limits.kv_tokens + 1)


def _bias_arrays(bias: dict[int, float]) -> tuple[I32, F32]:
    return np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
