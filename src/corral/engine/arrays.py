"""The engine's lists of integers as the arrays of a Batch.

What stays the same from step to step lies in arrays with a row for each running request; a step gathers from
them, so that it costs the same few array operations for one request or for sixty.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from corral.engine.request import Request
from corral.executors.batch import F32, I32, Batch, SamplingRows

_U64 = np.uint64
_EMPTY_I32, _EMPTY_F32, _EMPTY_U8 = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.uint8)


@dataclass(slots=True)
class Scored:
    """Rows first .. first + count score a prompt's next tokens."""

    request: Request
    first: int
    count: int


@dataclass(slots=True)
class Rows:
    """Whose logit rows a batch has: a request that samples has one, and one more for each of its drafts."""

    slots: list[int] = field(default_factory=list)
    where: list[int] = field(default_factory=list)  # the row's place among the batch's tokens
    targets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # tokens known before the one to sample
    sampled: list[tuple[Request, int]] = field(default_factory=list)  # the first row of each
    scored: list[Scored] = field(default_factory=list)


class BatchArrays:
    """Per-request arrays [S] and block tables [groups, S, P] for at most S running requests."""

    def __init__(self, max_sequences: int, groups: int, max_blocks: int):
        self._free = list(range(max_sequences - 1, -1, -1))
        self._tables = np.full((groups, max_sequences, max_blocks), -1, np.int32)
        self._floats = np.zeros((6, max_sequences), np.float32)
        self._integers = np.zeros((3, max_sequences), np.int32)  # top_k, logprobs, prompt_logprobs
        self._seeds = np.zeros(max_sequences, _U64)

    def enter(self, request: Request) -> None:
        """Give a request that starts to run its row."""
        slot = request.slot = self._free.pop()
        request.listed = 0
        p = request.params
        self._floats[:, slot] = (
            p.temperature,
            p.top_p,
            p.min_p,
            p.repetition_penalty,
            p.presence_penalty,
            p.frequency_penalty,
        )
        self._integers[:, slot] = (max(p.top_k, 0), _or_none(p.logprobs), _or_none(p.prompt_logprobs))
        self._seeds[slot] = request.seed

    def leave(self, request: Request) -> None:
        """Take the row back; harmless when there is none."""
        if request.slot >= 0:
            self._tables[:, request.slot, : request.listed] = -1
            self._free.append(request.slot)
            request.slot = -1

    def check(self, running: list[Request]) -> None:
        """Raise AssertionError unless exactly these requests have rows, and the rows their blocks."""
        slots = {request.slot for request in running}
        assert len(slots) == len(running) and not slots & set(self._free), "a row is shared"
        assert len(slots) + len(self._free) == self._tables.shape[1], "a row is lost"
        for request in running:
            sequence = request.sequence
            for rows, table, dropped in zip(self._tables, sequence.tables, sequence.dropped, strict=True):
                row, listed = rows[request.slot].tolist(), table[: request.listed]
                assert row[dropped:] == listed[dropped:] + [-1] * (len(row) - len(listed)), "a table is stale"

    def batch(self, chunks: list[tuple[Request, int]]) -> tuple[Batch, Rows]:
        """The arrays for computing the next `count` tokens of each request."""
        tokens: list[int] = []
        positions: list[int] = []
        starts, slots, width, rows = [0], [], 0, Rows()
        for request, count in chunks:
            sequence = request.sequence
            start = sequence.computed
            self._list_blocks(request)
            slots.append(request.slot)
            width = max(width, request.listed)
            if request.scoring:
                _add_scored(rows, request, start, count, len(tokens) - start)
            if count == 1:
                tokens.append(sequence.tokens[start])
                positions.append(start)
            else:
                tokens += sequence.tokens[start : start + count]
                tokens += sequence.drafts
                positions += range(start, start + count)
            starts.append(len(tokens))
            if request.replies and start + count >= len(sequence.tokens):
                _add_sampled(rows, request, len(tokens) - 1 - len(sequence.drafts))
        batch = Batch(
            tokens=np.array(tokens, np.int32),
            positions=np.array(positions, np.int32),
            starts=np.array(starts, np.int32),
            blocks=self._tables[:, :, :width].take(slots, axis=1),
            rows=np.array(rows.where, np.int32),
            sampling=self._sampling(rows),
        )
        return batch, rows

    def _list_blocks(self, request: Request) -> None:
        """Write what is new; entries that were dropped since stay as they were, and nobody reads them."""
        tables, listed = request.sequence.tables, request.listed
        length = len(tables[0])
        if length != listed:
            self._tables[:, request.slot, listed:length] = [table[listed:] for table in tables]
            request.listed = length

    def settle(self, request: Request) -> None:
        """Forget blocks that the request has given back."""
        length = len(request.sequence.tables[0])
        self._tables[:, request.slot, length : request.listed] = -1
        request.listed = min(request.listed, length)

    def _sampling(self, rows: Rows) -> SamplingRows:
        slots = np.array(rows.slots, np.intp)
        target = np.array(rows.targets, np.int32)
        floats = self._floats.take(slots, axis=1)  # [6, R], rows contiguous
        top_k, logprobs, prompt_logprobs = self._integers.take(slots, axis=1)
        if rows.scored:
            logprobs = np.where(target >= 0, prompt_logprobs, logprobs)
        bias_starts, bias_ids, bias_values = _bias(rows)
        starts, ids, counts = _penalties(rows)
        return SamplingRows(
            target=target,
            temperature=floats[0],
            top_k=top_k,
            top_p=floats[1],
            min_p=floats[2],
            repetition=floats[3],
            presence=floats[4],
            frequency=floats[5],
            seeds=_mix(self._seeds[slots], np.array(rows.lengths, _U64)),
            logprobs=logprobs,
            penalty_starts=starts,
            penalty_ids=ids,
            penalty_counts=counts,
            penalty_repeats=np.ones(len(ids), np.uint8) if len(ids) else _EMPTY_U8,
            bias_starts=bias_starts,
            bias_ids=bias_ids,
            bias_values=bias_values,
        )


def _or_none(wanted: int | None) -> int:
    return -1 if wanted is None else wanted


def _add_scored(rows: Rows, request: Request, start: int, count: int, offset: int) -> None:
    """`offset` + position = place among the batch's tokens."""
    span = request.scored_positions(start, count)
    if span:
        rows.scored.append(Scored(request, len(rows.slots), len(span)))
        rows.slots += [request.slot] * len(span)
        rows.where += range(span.start + offset, span.stop + offset)
        rows.targets += request.prompt[span.start + 1 : span.stop + 1]
        rows.lengths += [0] * len(span)


def _add_sampled(rows: Rows, request: Request, place: int) -> None:
    known, count = len(request.sequence.tokens), 1 + len(request.sequence.drafts)
    rows.sampled.append((request, len(rows.slots)))
    rows.slots += [request.slot] * count
    rows.where += range(place, place + count)
    rows.targets += [-1] * count
    rows.lengths += range(known, known + count)


def _mix(seeds: NDArray[np.uint64], index: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64 of a request's seed and a token's index: neighbouring indexes give unrelated draws."""
    x: NDArray[np.uint64] = seeds + index * _U64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> _U64(27))) * _U64(0x94D049BB133111EB)
    return x ^ (x >> _U64(31))


def _bias(rows: Rows) -> tuple[I32, I32, F32]:
    """Row starts, ids and values of what is added to logits."""
    parts = {
        row + ahead: request.bias_of(request.replied + ahead)
        for request, row in rows.sampled
        if request.biased
        for ahead in range(1 + len(request.sequence.drafts))
    }
    starts = _starts({row: len(ids) for row, (ids, _) in parts.items()}, len(rows.slots))
    if not parts:
        return starts, _EMPTY_I32, _EMPTY_F32
    ids, values = zip(*parts.values(), strict=True)
    return starts, np.concatenate(ids), np.concatenate(values)


def _penalties(rows: Rows) -> tuple[I32, I32, I32]:
    """Row starts, ids and counts of what penalties look at."""
    parts: dict[int, tuple[I32, I32]] = {}
    for request, row in rows.sampled:
        if request.penalties:
            parts[row] = request.penalties.ids, request.penalties.counts
            if request.sequence.drafts:
                parts |= enumerate(request.penalties.after(request.sequence.drafts), row + 1)
    starts = _starts({row: len(ids) for row, (ids, _) in parts.items()}, len(rows.slots))
    if not parts:
        return starts, _EMPTY_I32, _EMPTY_I32
    ids, counts = zip(*parts.values(), strict=True)
    return starts, np.concatenate(ids), np.concatenate(counts)


def _starts(sizes: dict[int, int], rows: int) -> I32:
    starts = np.zeros(rows + 1, np.int32)
    if sizes:
        starts[[row + 1 for row in sizes]] = list(sizes.values())
        np.cumsum(starts, out=starts)
    return starts
