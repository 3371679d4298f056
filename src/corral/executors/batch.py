"""What an executor is given for one step, and what it gives back.

A step has two halves: `submit` takes the tokens, `collect` how their logits become tokens. What only sampling
needs, such as a grammar's masks, is prepared between the two, while a device of its own already computes.

Letters: N tokens in the step, B sequences, G groups of KV layers, S slots, P blocks of the longest table that
a sequence can have, R rows whose logits are wanted, V tokens of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from corral.models.cache import CacheSpec
from corral.types import MAX_TOP_LOGPROBS

I32 = NDArray[np.int32]
U32 = NDArray[np.uint32]
F32 = NDArray[np.float32]


# How to treat a logit row: native/sampling.h has the same struct. Neutral values as in types.SamplingParams.
COLUMNS = np.dtype(
    [
        ("temperature", np.float32),
        ("top_k", np.int32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("repetition", np.float32),
        ("presence", np.float32),
        ("frequency", np.float32),
        ("logprobs", np.int32),  # -1 = none wanted, else how many alternatives (0..20)
        ("target", np.int32),  # -1 = sample; else the row is not sampled, but this token's log-prob reported
        ("index", np.int32),  # of the token to sample in its sequence: a draw depends on it and the seed
        ("seed", np.uint64),
    ]
)


@dataclass(frozen=True, slots=True)
class Penalties:
    """Entries starts[r]:starts[r + 1] are the distinct tokens that row r's penalties look at.

    Repetition looks at all of them, presence and frequency at those whose count is not 0.
    """

    starts: I32  # [R + 1]
    ids: I32
    counts: I32


@dataclass(frozen=True, slots=True)
class Bias:
    """Entries starts[r]:starts[r + 1] are added to row r's logits first of all; -inf bans a token."""

    starts: I32  # [R + 1]
    ids: I32
    values: F32


@dataclass(frozen=True, slots=True)
class Masks:
    """Which tokens rows may be given: those whose bits are set. They apply before bias and penalties.

    Bit i of word w is token 32 * w + i. A row whose mask allows no token fails as if its logits were no
    numbers.
    """

    rows: I32  # [R]: the mask of each row, -1 = every token is allowed
    bits: U32  # [masks, ceil(V / 32)]


@dataclass(frozen=True, slots=True)
class SamplingRows:
    """How to treat each logit row; None where no row has any."""

    columns: NDArray[np.void]  # [R] of COLUMNS
    masks: Masks | None = None
    penalties: Penalties | None = None
    bias: Bias | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step: for each sequence some consecutive positions.

    Position p of sequence b lies, for the layers of group g, in block tables[g, slots[b], p // BLOCK_SIZE].
    Entries are valid from the first block that the sequence's first row sees to the block of its last row;
    the others may be anything. An engine's arrays keep their addresses for its life.
    """

    tokens: I32  # [N]
    positions: I32  # [N]
    starts: I32  # [B + 1]: rows of sequence b are starts[b]:starts[b + 1]
    slots: I32  # [B]: no two alike
    tables: I32  # [G, S, P]
    rows: I32  # [R]: which of the N rows want logits
    inputs: F32 | None = None  # [N, width] for a Program with an Input; its tokens say nothing

    def tables_of(self, group: int) -> I32:
        """The block table of each sequence for one group of layers, [B, P]."""
        tables: I32 = self.tables[group, self.slots]
        return tables


@dataclass(frozen=True, slots=True)
class StepResult:
    """What came out for each logit row. Log-probs are of the raw distribution, before masks and all else."""

    tokens: I32  # [R]: the sampled token, or the target
    logprobs: F32  # [R], 0 where none were wanted
    top_tokens: I32  # [R, 20], -1 pads; most likely first
    top_logprobs: F32  # [R, 20]
    vectors: F32 | None = None  # [R, width] of a Program that ends in Output; its tokens are -1

    @classmethod
    def of_vectors(cls, vectors: F32) -> "StepResult":
        """A result without tokens."""
        rows = len(vectors)
        return cls(
            tokens=np.full(rows, -1, np.int32),
            logprobs=np.zeros(rows, np.float32),
            top_tokens=np.full((rows, MAX_TOP_LOGPROBS), -1, np.int32),
            top_logprobs=np.zeros((rows, MAX_TOP_LOGPROBS), np.float32),
            vectors=vectors,
        )


def blocks_of_pools(cache: CacheSpec, num_blocks: int | Sequence[int]) -> tuple[int, ...]:
    """The number of blocks of each pool of a cache; a single number stands for as many in every pool."""
    pools = len(cache.block_bytes)
    return (num_blocks,) * pools if isinstance(num_blocks, int) else tuple(num_blocks)


class Executor(Protocol):
    """Runs a Program. One instance holds the packed weights and the KV cache of one model."""

    cache: CacheSpec
    num_blocks: tuple[int, ...]  # of each pool of the cache
    max_tokens: int  # the largest N of a step

    def submit(self, batch: Batch) -> None:
        """Begin a step; ValueError if the batch does not fit. Its arrays must last until `collect` ends."""
        ...

    def collect(self, sampling: SamplingRows) -> StepResult:
        """End the step submitted last; ValueError if the batch or its sampling do not fit.

        Blocks without the GIL where the executor is native.
        """
        ...

    def buffer(self, index: int) -> NDArray[Any]:
        """A copy of a buffer's rows as the last step left them: for tests, float32 [N or R, width]."""
        ...

    def close(self) -> None:
        """Give back threads and memory."""
        ...
