"""From logits to tokens, row by row: the definition of correct for every executor's sampler.

The order: raw log-probs; bias, repetition, frequency, presence; greedy, or temperature, min_p, top_k, top_p
and a draw. Among equal logits the lower id goes first.
"""

import numpy as np
from numpy.typing import NDArray

from corral.executors.batch import F32, SamplingRows, StepResult
from corral.types import MAX_TOP_LOGPROBS

FAILED = -1  # the token of a row whose logits are not numbers, or all banned
MASK64 = (1 << 64) - 1

F64 = NDArray[np.float64]


def sample(logits: F32, rows: SamplingRows) -> StepResult:
    """Sample, or score, every row of logits [R, vocabulary]."""
    count = len(logits)
    result = StepResult(
        tokens=rows.target.copy(),
        logprobs=np.zeros(count, np.float32),
        top_tokens=np.full((count, MAX_TOP_LOGPROBS), -1, np.int32),
        top_logprobs=np.zeros((count, MAX_TOP_LOGPROBS), np.float32),
    )
    for r, raw in enumerate(logits):
        if not np.isfinite(raw.max()):
            result.tokens[r] = FAILED
            continue
        if rows.target[r] < 0:
            result.tokens[r] = _choose(_adjusted(raw, rows, r), rows, r)
        if result.tokens[r] != FAILED and (rows.target[r] >= 0 or rows.logprobs[r] >= 0):
            _report(raw, int(rows.logprobs[r]), r, result)
    return result


def _report(raw: F32, alternatives: int, r: int, result: StepResult) -> None:
    """Write the chosen token's log-prob and the most likely alternatives."""
    logprobs = raw - (raw.max() + np.log(np.sum(np.exp(raw - raw.max(), dtype=np.float64))))
    result.logprobs[r] = logprobs[result.tokens[r]]
    if alternatives > 0:
        best = _likeliest_first(raw, np.arange(len(raw)))[:alternatives]
        result.top_tokens[r, : len(best)] = best
        result.top_logprobs[r, : len(best)] = logprobs[best]


def _adjusted(raw: F32, rows: SamplingRows, r: int) -> F32:
    """Logits with the bias and the penalties that this row asks for."""
    logits = raw.copy()
    bias = slice(rows.bias_starts[r], rows.bias_starts[r + 1])
    logits[rows.bias_ids[bias]] += rows.bias_values[bias]
    seen = slice(rows.penalty_starts[r], rows.penalty_starts[r + 1])
    ids, counts = rows.penalty_ids[seen], rows.penalty_counts[seen]
    repeated = ids[rows.penalty_repeats[seen] != 0]
    repetition = rows.repetition[r]
    logits[repeated] = np.where(
        logits[repeated] > 0, logits[repeated] / repetition, logits[repeated] * repetition
    )
    logits[ids] -= rows.frequency[r] * counts + rows.presence[r] * (counts > 0)
    return logits


def _choose(logits: F32, rows: SamplingRows, r: int) -> int:
    """The next token: greedy, or drawn from what the filters leave."""
    if not np.isfinite(logits.max()):
        return FAILED
    temperature = float(rows.temperature[r])
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    kept = np.flatnonzero(weights >= max(float(rows.min_p[r]), np.finfo(np.float64).tiny))
    top_k, top_p = int(rows.top_k[r]), float(rows.top_p[r])
    if top_k > 0 or top_p < 1:
        kept = _likeliest_first(logits, kept)
    if top_k > 0:
        kept = kept[:top_k]
    if top_p < 1:
        kept = kept[: _nucleus(weights[kept], top_p)]
    return int(kept[_draw(weights[kept], int(rows.seeds[r]))])


def _likeliest_first(logits: F32, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids[np.argsort(-logits[ids], kind="stable")]


def _nucleus(weights: F64, mass: float) -> int:
    """How many of the first weights reach this part of their sum; at least one."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, mass * sums[-1])) + 1, len(weights))


def _draw(weights: F64, seed: int) -> int:
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, uniform(seed) * sums[-1], side="right")), len(weights) - 1)


def uniform(seed: int) -> float:
    """A number in [0, 1) that depends on the seed alone: two rounds of splitmix64, the upper 53 bits."""
    for _ in range(2):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK64
        seed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & MASK64
        seed = ((seed ^ seed >> 27) * 0x94D049BB133111EB) & MASK64
        seed ^= seed >> 31
    return (seed >> 11) * 2.0**-53
