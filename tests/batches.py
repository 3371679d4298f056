"""Batches for executor tests, from plain lists."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from corral.executors.batch import Batch, SamplingRows
from corral.types import BLOCK_SIZE


@dataclass(frozen=True)
class Part:
    """Some consecutive tokens of one sequence; by default all of their rows want logits."""

    tokens: Sequence[int]
    blocks: Sequence[int]
    start: int = 0
    rows: Sequence[int] | None = None  # counted within the part


def make_batch(
    parts: Sequence[Part], sampling: SamplingRows | None = None, *, groups: int = 1, **fields: Any
) -> Batch:
    """A Batch of these parts; `fields` change greedy_rows' SamplingRows where `sampling` is not given.

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
    return Batch(
        tokens=np.array([token for part in parts for token in part.tokens], np.int32),
        positions=np.concatenate([np.arange(len(part.tokens)) + part.start for part in parts]).astype(
            np.int32
        ),
        starts=starts,
        blocks=np.stack([np.where(table < 0, -1, table * groups + group) for group in range(groups)]).astype(
            np.int32
        ),
        rows=np.array(rows, np.int32),
        sampling=sampling if sampling is not None else replace(greedy_rows(len(rows)), **fields),
    )


def blocks_for(length: int, first: int = 0) -> list[int]:
    """As many block numbers as `length` positions need, in order from `first`."""
    return list(range(first, first + -(-length // BLOCK_SIZE)))


def greedy_rows(count: int) -> SamplingRows:
    """Rows that are sampled greedily, with nothing else asked."""
    zeros, ones = np.zeros(count, np.float32), np.ones(count, np.float32)
    starts, ids = np.zeros(count + 1, np.int32), np.zeros(0, np.int32)
    return SamplingRows(
        target=np.full(count, -1, np.int32),
        temperature=zeros,
        top_k=np.zeros(count, np.int32),
        top_p=ones,
        min_p=zeros,
        repetition=ones,
        presence=zeros,
        frequency=zeros,
        seeds=np.zeros(count, np.uint64),
        logprobs=np.full(count, -1, np.int32),
        penalty_starts=starts,
        penalty_ids=ids,
        penalty_counts=ids,
        penalty_repeats=np.zeros(0, np.uint8),
        bias_starts=starts,
        bias_ids=ids,
        bias_values=np.zeros(0, np.float32),
    )
