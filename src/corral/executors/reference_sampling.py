"""From logits to tokens, row by row: the definition of correct for every executor's sampler.

The order: raw log-probs; mask, bias, repetition, frequency, presence; greedy, or temperature, min_p, top_k,
top_p and a draw. Among equal logits the lower id goes first.
"""

import numpy as np
from numpy.typing import NDArray

from corral.executors.batch import F32, SamplingRows, StepResult
from corral.types import MAX_TOP_LOGPROBS

FAILED = -1  # the token of a row whose logits are not numbers, or all banned
MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

F64 = NDArray[np.float64]


def sample(logits: F32, rows: SamplingRows) -> StepResult:
    """Sample, or score, every row of logits [R, vocabulary]."""
    count, target, logprobs = len(logits), rows.columns["target"], rows.columns["logprobs"]
    result = StepResult(
        tokens=target.copy(),
        logprobs=np.zeros(count, np.float32),
        top_tokens=np.full((count, MAX_TOP_LOGPROBS), -1, np.int32),
        top_logprobs=np.zeros((count, MAX_TOP_LOGPROBS), np.float32),
    )
    for r, raw in enumerate(logits):
        if not np.isfinite(raw.max()):
            result.tokens[r] = FAILED
            continue
        if target[r] < 0:
            result.tokens[r] = _choose(_adjusted(raw, rows, r), rows, r)
        if result.tokens[r] != FAILED and (target[r] >= 0 or logprobs[r] >= 0):
            _report(raw, int(logprobs[r]), r, result)
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
    """Logits with the mask, the bias and the penalties that this row asks for."""
    logits = raw.copy()
    if rows.masks and rows.masks.rows[r] >= 0:
        words = rows.masks.bits[rows.masks.rows[r]]
        allowed = words[:, None] >> np.arange(32, dtype=np.uint32) & 1  # [V / 32, 32]
        logits[allowed.reshape(-1)[: len(logits)] == 0] = -np.inf
    if rows.bias:
        bias = slice(rows.bias.starts[r], rows.bias.starts[r + 1])
        logits[rows.bias.ids[bias]] += rows.bias.values[bias]
    if rows.penalties:
        seen = slice(rows.penalties.starts[r], rows.penalties.starts[r + 1])
        ids, counts, row = rows.penalties.ids[seen], rows.penalties.counts[seen], rows.columns[r]
        repetition = row["repetition"]
        logits[ids] = np.where(logits[ids] > 0, logits[ids] / repetition, logits[ids] * repetition)
        logits[ids] -= row["frequency"] * counts + row["presence"] * (counts > 0)
    return logits


def _choose(logits: F32, rows: SamplingRows, r: int) -> int:
    """The next token: greedy, or drawn from what the filters leave."""
    if not np.isfinite(logits.max()):
        return FAILED
    row = rows.columns[r]
    temperature = float(row["temperature"])
    if temperature == 0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()).astype(np.float64) / temperature)
    kept = np.flatnonzero(weights >= max(float(row["min_p"]), np.finfo(np.float64).tiny))
    top_k, top_p = int(row["top_k"]), float(row["top_p"])
    if top_k > 0 or top_p < 1:
        kept = _likeliest_first(logits, kept)
    if top_k > 0:
        kept = kept[:top_k]
    if top_p < 1:
        kept = kept[: _nucleus(weights[kept], top_p)]
    return int(kept[_draw(weights[kept], mix(int(row["seed"]), int(row["index"])))])


def _likeliest_first(logits: F32, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    return ids[np.argsort(-logits[ids], kind="stable")]


def _nucleus(weights: F64, mass: float) -> int:
    """How many of the first weights reach this part of their sum; at least one."""
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, mass * sums[-1])) + 1, len(weights))


def _draw(weights: F64, seed: int) -> int:
    sums = np.cumsum(weights)
    return min(int(np.searchsorted(sums, uniform(seed) * sums[-1], side="right")), len(weights) - 1)


def mix(seed: int, index: int) -> int:
    """SplitMix64 of a request's seed and a token's index: neighbouring indexes give unrelated draws."""
    return _scramble((seed + index * _GOLDEN) & MASK64)


def uniform(seed: int) -> float:
    """A number in [0, 1) that depends on the seed alone: two rounds of splitmix64, the upper 53 bits."""
    for _ in range(2):
        seed = _scramble((seed + _GOLDEN) & MASK64)
    return (seed >> 11) * 2.0**-53


def _scramble(x: int) -> int:
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK64
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK64
    return x ^ x >> 31
