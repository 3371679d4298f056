"""What an executor is given for one step, and what it gives back.

Letters: N tokens in the step, B sequences, G groups of KV layers, P blocks of the longest table, R rows whose
logits are wanted.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How to treat each logit row. Neutral values as in types.SamplingParams.

    A row with target >= 0 is not sampled: its log-prob is reported for that token (prompt scoring).
    `seeds` already mix the request's seed with the token's index, so a row's draw depends on nothing else.
    Penalties: entries penalty_starts[r]:penalty_starts[r + 1] hold distinct token ids, how often each occurs
    among the tokens that presence and frequency look at, and whether repetition looks at it.
    """

    target: I32  # [R], -1 = sample
    temperature: F32  # [R]
    top_k: I32  # [R]
    top_p: F32  # [R]
    min_p: F32  # [R]
    repetition: F32  # [R]
    presence: F32  # [R]
    frequency: F32  # [R]
    seeds: NDArray[np.uint64]  # [R]
    logprobs: I32  # [R], -1 = none wanted, else how many alternatives (0..20)
    penalty_starts: I32  # [R + 1]
    penalty_ids: I32
    penalty_counts: I32
    penalty_repeats: NDArray[np.uint8]
    bias_starts: I32  # [R + 1]
    bias_ids: I32  # added to logits before everything else; -inf bans a token
    bias_values: F32


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step: for each sequence some consecutive positions.

    Position p of sequence b lies, for the layers of group g, in block blocks[g, b, p // BLOCK_SIZE]. Entries
    are valid from the first block that the sequence's first row sees to the block of its last row; the others
    may be anything.
    """

    tokens: I32  # [N]
    positions: I32  # [N]
    starts: I32  # [B + 1]: rows of sequence b are starts[b]:starts[b + 1]
    blocks: I32  # [G, B, P]
    rows: I32  # [R]: which of the N rows want logits
    sampling: SamplingRows


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came out for each logit row. Log-probs are of the raw distribution, before any filter or bias."""

    tokens: I32  # [R]: the sampled token, or the target
    logprobs: F32  # [R], 0 where none were wanted
    top_tokens: I32  # [R, 20], -1 pads; most likely first
    top_logprobs: F32  # [R, 20]


class Executor(Protocol):
    """Runs a Program. One instance holds the packed weights and the KV cache of one model."""

    num_blocks: int
    kv_windows: tuple[int | None, ...]  # what each group of KV layers sees
    max_tokens: int  # the largest N of a step

    def step(self, batch: Batch) -> StepResult:
        """Run one step; blocks without the GIL where the executor is native."""
        ...

    def buffer(self, index: int) -> NDArray[Any]:
        """A copy of a buffer's rows as the last step left them: for tests, float32 [N or R, width]."""
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...
