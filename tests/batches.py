"""Batches for executor tests, from plain lists."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from corral.executors.batch import COLUMNS, Batch, SamplingRows, StepResult
from corral.types import BLOCK_SIZE

# What a step of a Program that gives tokens has in its StepResult.
TOKEN_FIELDS = ("tokens", "logprobs", "top_tokens", "top_logprobs")


@dataclass(frozen=True)
class Part:
    """Some consecutive tokens of one sequence; by default all of their rows want logits."""

    tokens: Sequence[int]
    blocks: Sequence[int]
    start: int = 0
    rows: Sequence[int] | None = None  # counted within the part


@dataclass(frozen=True, slots=True)
class SampledBatch(Batch):
    """A Batch together with how its rows are sampled."""

    sampling: SamplingRows = field(kw_only=True)


def step(executor: Any, batch: SampledBatch) -> StepResult:
    """Both halves of a step."""
    executor.submit(batch)
    result: StepResult = executor.collect(batch.sampling)
    return result


def make_batch(
    parts: Sequence[Part], sampling: SamplingRows | None = None, *, groups: int = 1, **columns: Any
) -> SampledBatch:
    """A batch of these parts; `columns` change greedy_rows where `sampling` is not given.

    With several groups of KV layers each block of a part stands for as many neighbouring ones, one a group.
    """
    lengths = [len(part.tokens) for part in parts]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    table = np.full((len(parts), max(len(part.blocks) for part in parts)), -1, np.int32)
    for row, part in zip(table, parts, strict=True):
        row[: len(part.blocks)] = part.blocks
    rows = [
        starts[i] + row
        for i, part in enumerate(parts)
        for row in (range(len(part.tokens)) if part.rows is None else part.rows)
    ]
    return SampledBatch(
        tokens=np.array([token for part in parts for token in part.tokens], np.int32),
        positions=np.concatenate([np.arange(len(part.tokens)) + part.start for part in parts]).astype(
            np.int32
        ),
        starts=starts,
        slots=np.arange(len(parts), dtype=np.int32),
        tables=np.stack([np.where(table < 0, -1, table * groups + group) for group in range(groups)]).astype(
            np.int32
        ),
        rows=np.array(rows, np.int32),
        sampling=sampling if sampling is not None else with_columns(greedy_rows(len(rows)), **columns),
    )


def blocks_for(length: int, first: int = 0) -> list[int]:
    """As many block numbers as `length` positions need, in order from `first`."""
    return list(range(first, first + -(-length // BLOCK_SIZE)))


def greedy_rows(count: int) -> SamplingRows:
    """Rows that are sampled greedily, with nothing else asked."""
    columns = np.zeros(count, COLUMNS)
    for name, value in {"top_p": 1, "repetition": 1, "logprobs": -1, "target": -1}.items():
        columns[name] = value
    return SamplingRows(columns)


def with_columns(rows: SamplingRows, **columns: Any) -> SamplingRows:
    """The rows with other values in some columns; one number stands for a whole column."""
    changed = rows.columns.copy()
    for name, values in columns.items():
        changed[name] = values
    return replace(rows, columns=changed)


def score(executor: Any, tokens: np.ndarray) -> StepResult:
    """Top 20 at every position, in one step; the row of position i is scored for token i + 1."""
    count = len(tokens)
    return step(
        executor,
        make_batch(
            [Part(tokens, blocks_for(count))],
            groups=len(executor.cache.groups),
            target=np.append(tokens[1:], 0).astype(np.int32),
            logprobs=np.full(count, 20, np.int32),
        ),
    )
