"""A request inside the engine: a sequence, how to sample it, when it ends, and where its time went."""

import random
import time
from collections.abc import Iterable, Mapping

import numpy as np

from corral.engine.admission import Limits
from corral.engine.drafts import Drafts
from corral.engine.penalties import PenaltyCounts, wants_penalties
from corral.engine.sequence import Sequence
from corral.executors.batch import F32, I32, U32
from corral.types import FinishReason, SamplingParams, Scores, SequenceStats, TokenLogprob


class Request:
    """Everything that the engine keeps for one request."""

    def __init__(
        self,
        id: int,
        prompt: list[int],
        params: SamplingParams,
        scores: Scores,
        limits: Limits,
        salt: bytes = b"",
    ):
        # What every step looks at comes first, so that it lies together.
        self.id = id
        self.scoring = scores.prompt_logprobs is not None
        self.replies = params.max_tokens != 0
        # The last prompt token is computed for the sake of the first reply token only.
        tokens = prompt.copy() if self.replies else prompt[:-1]
        self.sequence = Sequence(id, tokens, sharing=not self.scoring, salt=salt)
        self.slot = -1  # in the batch arrays while running
        self.guessing = False  # its next tokens were guessed before the last step
        self.decodes = False  # its next token lies in that slot: nothing else is to be computed
        self.listed = 0  # entries of each block table already written to that slot
        self.stops = frozenset(params.stop_token_ids)
        self.limit = _limit(len(prompt), params, limits)
        self.penalties = PenaltyCounts(tokens, params.penalty_window) if wants_penalties(params) else None
        self.bias = _bias_arrays(params.logit_bias) if params.logit_bias else None
        early = params.min_tokens and self.stops
        self.early_mask = _mask_without(self.stops, limits.vocab_size) if early else None
        self.adjusts = self.penalties is not None or self.bias is not None or self.early_mask is not None
        self.plain = scores.logprobs is None  # its tokens are all that there is to tell of most steps
        self.started = self.first = 0  # ns; 0 = not yet
        self.params, self.scores = params, scores
        self.prompt = prompt
        self.seed = random.getrandbits(64) if params.seed is None else params.seed & (2**64 - 1)
        self.drafts = Drafts(tokens) if self.replies else None
        self.scored: list[TokenLogprob | None] = [None] if self.scoring else []
        self.arrived = time.monotonic_ns()

    @property
    def replied(self) -> int:
        """Tokens sampled so far."""
        return len(self.sequence.tokens) - len(self.prompt) if self.replies else 0

    def mask_of(self, index: int) -> U32 | None:
        """The mask of a token of the reply, None = every token may come: what ends it too early may not."""
        return self.early_mask if index < self.params.min_tokens else None

    def guess(self, needed: float) -> int:
        """Draft the tokens that are at least so likely to come, if the request decodes; how many they are."""
        sequence = self.sequence
        if not self.drafts or sequence.pending != 1:
            return 0
        # The step samples one token more than its drafts, which is at most the last.
        sequence.drafts = self.drafts.propose(self.limit - len(sequence.tokens) - 1, needed)
        self.guessing = bool(self.drafts.guess)
        return len(sequence.drafts)

    def scored_positions(self, start: int, count: int) -> range:
        """Of positions start .. start + count, those whose logits score a prompt token for the first time."""
        if not self.scoring:
            return range(0)
        return range(max(start, len(self.scored) - 1), min(start + count, len(self.prompt) - 1))

    def push(self, token: int) -> FinishReason | None:
        """Append a sampled token; why it was the last, if it was."""
        tokens = self.sequence.tokens
        tokens.append(token)
        if self.penalties:
            self.penalties.push()
        if token in self.stops:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(tokens) >= self.limit else None

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
            decode_ns=now - first,
        )


def _limit(prompt: int, params: SamplingParams, limits: Limits) -> int:
    """Known tokens at which a reply ends. The last token needs no place in the KV cache."""
    wanted = prompt + params.max_tokens if params.max_tokens is not None else limits.context_length
    return min(limits.context_of(params), wanted, limits.kv_tokens + 1)


def _mask_without(banned: Iterable[int], vocab_size: int) -> U32:
    """A mask [ceil(vocab_size / 32)] that allows every token but these."""
    mask = np.full(-(-vocab_size // 32), 2**32 - 1, np.uint32)
    for token in banned:
        mask[token // 32] &= ~np.uint32(1 << token % 32)
    return mask


def _bias_arrays(bias: Mapping[int, float]) -> tuple[I32, F32]:
    return np.array(list(bias), np.int32), np.array(list(bias.values()), np.float32)
