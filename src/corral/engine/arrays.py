"""The running requests' integers as the arrays of a Batch.

What stays the same from step to step lies in arrays with a slot for each running request: its next token,
that token's position, its block tables, how it is sampled. A step gathers the slots of those that decode in a
few array operations, as many for one request as for hundreds; only the others are walked token by token. What
an executor is given keeps its address for an engine's life.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corral.engine.adjustments import bias_of, masks_of, penalties_of
from corral.engine.request import Request
from corral.executors.batch import COLUMNS, I32, Batch, SamplingRows
from corral.types import BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class RowSpan:
    """Logit rows first .. first + count of a batch tell of a request's tokens index .. index + count."""

    request: Request
    first: int
    count: int
    index: int


@dataclass(frozen=True, slots=True)
class Rows:
    """Whose logit rows a batch has: one of each request that decodes, in order, then those of the others."""

    decoding: list[Request]
    sampled: list[RowSpan]  # of others that sample: a row, and one more for each draft
    scored: list[RowSpan]  # of prompts whose tokens are scored
    slots: NDArray[np.intp]  # [R], of their requests
    attended: int  # positions that each of the batch's tokens sees, added up
    context: int  # the same, counted once for all tokens of a sequence


@dataclass(slots=True)
class _Others:
    """Lists of those that read their prompt or have drafts: they follow `before` that only decode."""

    before: int
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    row_slots: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    sampled: list[RowSpan] = field(default_factory=list)
    scored: list[RowSpan] = field(default_factory=list)
    context: int = 0

    def add(self, request: Request, count: int) -> None:
        """Compute so many next tokens, drafts included."""
        sequence = request.sequence
        start, known = sequence.computed, len(sequence.tokens)
        self.slots.append(request.slot)
        self.tokens += sequence.tokens[start : start + count]
        self.tokens += sequence.drafts
        self.positions += range(start, start + count)
        self.starts.append(self.before + len(self.tokens))
        self.context += start + count - 1
        scored = request.scored_positions(start, count)
        if scored:
            self.scored.append(self._want(request, scored.start + 1, len(scored)))
        if request.replies and start + count >= known:
            self.sampled.append(self._want(request, known, 1 + len(sequence.drafts)))

    def _want(self, request: Request, index: int, count: int) -> RowSpan:
        """The logits that tell of tokens index .. index + count of the request added last."""
        span = RowSpan(request, self.before + len(self.rows), count, index)
        # Of the token before the first of them: so many rows before the request's last one.
        row = self.starts[-1] - 1 - (self.positions[-1] - (index - 1))
        self.rows += range(row, row + count)
        self.row_slots += [request.slot] * count
        self.indexes += range(index, index + count)
        return span


class _Column:
    """An array whose address stays: each step's values are its beginning."""

    def __init__(self, size: int):
        self._array = np.zeros(size, np.int32)

    def fill(self, first: NDArray[Any], then: list[int]) -> I32:
        """All these values, as a view that lasts until the next call."""
        middle, end = len(first), len(first) + len(then)
        self._array[:middle] = first
        if then:
            self._array[middle:end] = then
        return self._array[:end]


class BatchArrays:
    """Arrays for at most S running requests [S] and N tokens a step, and block tables [groups, S, P]."""

    def __init__(self, max_sequences: int, max_tokens: int, groups: int, max_blocks: int):
        self._free = list(range(max_sequences - 1, -1, -1))
        self._next_tokens = np.zeros(max_sequences, np.int32)
        self._next_positions = np.zeros(max_sequences, np.int32)
        self._tables = np.full((groups, max_sequences, max_blocks), -1, np.int32)
        self._columns = np.zeros(max_sequences, COLUMNS)
        # What the batch of a step is made of.
        self._tokens, self._positions, self._rows, self._indexes = (_Column(max_tokens) for _ in range(4))
        self._starts, self._slots = _Column(max_sequences + 1), _Column(max_sequences)
        self._row_columns = np.zeros(max_tokens, COLUMNS)
        self._counting = np.arange(max_sequences + 1, dtype=np.int32)

    def enter(self, request: Request) -> None:
        """Give a request that starts to run a slot."""
        slot = request.slot = self._free.pop()
        request.listed = 0
        request.started = request.started or time.monotonic_ns()
        p = request.params
        self._columns[slot] = (
            p.temperature,
            max(p.top_k, 0),
            p.top_p,
            p.min_p,
            p.repetition_penalty,
            p.presence_penalty,
            p.frequency_penalty,
            _or_none(request.scores.logprobs),
            -1,
            0,
            request.seed,
        )

    def leave(self, request: Request) -> None:
        """Take the slot back; harmless when there is none."""
        if request.slot >= 0:
            self._tables[:, request.slot, : request.listed] = -1
            self._free.append(request.slot)
            request.slot = -1
            request.decodes = False

    def check(self, running: list[Request]) -> None:
        """Raise AssertionError unless exactly these requests have slots, and what lies there is theirs."""
        slots = {request.slot for request in running}
        assert len(slots) == len(running) and not slots & set(self._free), "a slot is shared"
        assert len(slots) + len(self._free) == self._tables.shape[1], "a slot is lost"
        for request in running:
            sequence, slot = request.sequence, request.slot
            for rows, table, dropped in zip(self._tables, sequence.tables, sequence.dropped, strict=True):
                row, listed = rows[slot].tolist(), table[: request.listed]
                assert row[dropped:] == listed[dropped:] + [-1] * (len(row) - len(listed)), "a table is stale"
            if request.decodes:
                known = len(sequence.tokens)
                assert self._next_positions[slot] == known - 1 == sequence.computed, "a position is stale"
                assert self._next_tokens[slot] == sequence.tokens[-1], "a token is stale"

    def pack(self, chunks: Iterable[tuple[Request, int]]) -> tuple[Batch, Rows]:
        """The arrays for computing so many next tokens of each request; they last until the next call."""
        decoding: list[Request] = []
        rest: list[tuple[Request, int]] = []
        slots, context = [], 0
        for request, count in chunks:
            if count == 1 and request.decodes:
                decoding.append(request)
                slots.append(request.slot)
                computed = request.sequence.computed
                context += computed
                if computed % BLOCK_SIZE == 0:  # the token begins a new block
                    self._list_blocks(request)
            else:
                rest.append((request, count))
        others = _Others(before=len(slots))
        for request, count in rest:
            if request.slot < 0:
                self.enter(request)
            self._list_blocks(request)
            others.add(request, count)
        rows = Rows(
            decoding,
            others.sampled,
            others.scored,
            slots=np.array(slots + others.row_slots, np.intp),
            attended=context + sum(others.positions),
            context=context + others.context,
        )
        return self._batch(rows.slots, others), rows

    def _batch(self, row_slots: NDArray[np.intp], others: _Others) -> Batch:
        """What lies in the slots of those that decode, then the others' lists."""
        count = others.before
        slots, columns = row_slots[:count], self._row_columns[: len(row_slots)]
        positions = self._next_positions.take(slots)
        np.take(self._columns, row_slots, out=columns, mode="clip")  # "raise" would copy
        columns["index"] = self._indexes.fill(positions + 1, others.indexes)
        return Batch(
            tokens=self._tokens.fill(self._next_tokens.take(slots), others.tokens),
            positions=self._positions.fill(positions, others.positions),
            starts=self._starts.fill(self._counting[: count + 1], others.starts),
            slots=self._slots.fill(slots, others.slots),
            tables=self._tables,
            rows=self._rows.fill(self._counting[:count], others.rows),
        )

    def _list_blocks(self, request: Request) -> None:
        """Write what is new; entries that were dropped since stay as they were, and nobody reads them."""
        tables, listed = request.sequence.tables, request.listed
        request.listed = len(tables[0])
        self._tables[:, request.slot, listed : request.listed] = [table[listed:] for table in tables]

    def sampling(self, rows: Rows) -> SamplingRows:
        """How the rows of the batch packed last become tokens."""
        count = len(rows.slots)
        columns = self._row_columns[:count]
        for span in rows.scored:
            scored = slice(span.first, span.first + span.count)
            columns["target"][scored] = span.request.prompt[span.index : span.index + span.count]
            columns["logprobs"][scored] = span.request.scores.prompt_logprobs
        adjusted = [(request, row) for row, request in enumerate(rows.decoding) if request.adjusts]
        adjusted += [(span.request, span.first) for span in rows.sampled if span.request.adjusts]
        if not adjusted:
            return SamplingRows(columns)
        return SamplingRows(
            columns, masks_of(adjusted, count), penalties_of(adjusted, count), bias_of(adjusted, count)
        )

    def advance(self, rows: Rows, sampled: I32) -> None:
        """Those that decode were given these tokens, which are computed next."""
        slots = rows.slots[: len(rows.decoding)]
        self._next_tokens[slots] = sampled[: len(slots)]
        self._next_positions[slots] += 1

    def decode(self, request: Request) -> None:
        """From now on the request decodes: the last of its tokens is computed next, and nothing else."""
        tokens = request.sequence.tokens
        self._next_tokens[request.slot] = tokens[-1]
        self._next_positions[request.slot] = len(tokens) - 1
        request.decodes = True

    def trim(self, request: Request) -> None:
        """Forget blocks that the request has given back."""
        length = len(request.sequence.tables[0])
        self._tables[:, request.slot, length : request.listed] = -1
        request.listed = min(request.listed, length)


def _or_none(wanted: int | None) -> int:
    return -1 if wanted is None else wanted
