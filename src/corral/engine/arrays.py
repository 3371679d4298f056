"""The engine's lists of integers as the arrays of a Batch.

What stays the same from step to step lies in arrays with a row for each running request; a step gathers from
them, so that it costs the same few array operations for one request or for sixty.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from corral.engine.request import Request
from corral.executors.batch import COLUMNS, I32, Batch, Bias, Penalties, SamplingRows


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
    indexes: list[int] = field(default_factory=list)  # of the token that follows
    sampled: list[Request] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)  # the first row of each of them
    scored: list[Scored] = field(default_factory=list)
    looks: int = 0  # earlier tokens that all of the batch's look at
    fetched: int = 0  # the same, counted once a sequence


class BatchArrays:
    """Per-request arrays [S] and block tables [groups, S, P] for at most S running requests."""

    def __init__(self, max_sequences: int, groups: int, max_blocks: int):
        self._free = list(range(max_sequences - 1, -1, -1))
        self._tables = np.full((groups, max_sequences, max_blocks), -1, np.int32)
        self._columns = np.zeros(max_sequences, COLUMNS)

    def enter(self, request: Request) -> None:
        """Give a request that starts to run its row."""
        slot = request.slot = self._free.pop()
        request.listed = 0
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

    def batch(self, requests: list[Request], counts: list[int]) -> tuple[Batch, Rows]:
        """The arrays for computing so many next tokens of each request."""
        tokens: list[int] = []
        positions: list[int] = []
        starts, slots, width, rows = [0], [], 0, Rows()
        for request, count in zip(requests, counts, strict=True):
            sequence = request.sequence
            start = sequence.computed
            if len(sequence.tables[0]) != request.listed:
                self._list_blocks(request)
            slots.append(request.slot)
            if request.listed > width:
                width = request.listed
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
        rows.looks, rows.fetched = sum(positions), sum(positions[end - 1] for end in starts[1:])
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
        request.listed = len(tables[0])
        self._tables[:, request.slot, listed : request.listed] = [table[listed:] for table in tables]

    def settle(self, request: Request) -> None:
        """Forget blocks that the request has given back."""
        length = len(request.sequence.tables[0])
        self._tables[:, request.slot, length : request.listed] = -1
        request.listed = min(request.listed, length)

    def _sampling(self, rows: Rows) -> SamplingRows:
        columns = self._columns.take(np.array(rows.slots, np.intp))
        columns["index"] = rows.indexes
        for scored in rows.scored:
            request, span = scored.request, slice(scored.first, scored.first + scored.count)
            columns["target"][span] = [request.prompt[index] for index in rows.indexes[span]]
            columns["logprobs"][span] = request.scores.prompt_logprobs
        return SamplingRows(columns, _penalties(rows), _bias(rows))


def _or_none(wanted: int | None) -> int:
    return -1 if wanted is None else wanted


def _add_scored(rows: Rows, request: Request, start: int, count: int, offset: int) -> None:
    """`offset` + position = place among the batch's tokens."""
    span = request.scored_positions(start, count)
    if span:
        rows.scored.append(Scored(request, len(rows.slots), len(span)))
        rows.slots += [request.slot] * len(span)
        rows.where += range(span.start + offset, span.stop + offset)
        rows.indexes += range(span.start + 1, span.stop + 1)


def _add_sampled(rows: Rows, request: Request, place: int) -> None:
    known = len(request.sequence.tokens)
    rows.sampled.append(request)
    rows.firsts.append(len(rows.slots))
    for ahead in range(1 + len(request.sequence.drafts)):
        rows.slots.append(request.slot)
        rows.where.append(place + ahead)
        rows.indexes.append(known + ahead)


def _bias(rows: Rows) -> Bias | None:
    """What is added to logits."""
    parts = {
        row + ahead: request.bias_of(request.replied + ahead)
        for request, row in zip(rows.sampled, rows.firsts, strict=True)
        if request.biased
        for ahead in range(1 + len(request.sequence.drafts))
    }
    if not parts:
        return None
    ids, values = zip(*parts.values(), strict=True)
    return Bias(_starts(parts, ids, len(rows.slots)), np.concatenate(ids), np.concatenate(values))


def _penalties(rows: Rows) -> Penalties | None:
    """What penalties look at."""
    parts: dict[int, tuple[I32, I32]] = {}
    for request, row in zip(rows.sampled, rows.firsts, strict=True):
        if request.penalties:
            parts[row] = request.penalties.ids, request.penalties.counts
            if request.sequence.drafts:
                parts |= enumerate(request.penalties.after(request.sequence.drafts), row + 1)
    if not parts:
        return None
    ids, counts = zip(*parts.values(), strict=True)
    return Penalties(_starts(parts, ids, len(rows.slots)), np.concatenate(ids), np.concatenate(counts))


def _starts(which: Iterable[int], lists: Sequence[I32], rows: int) -> I32:
    """Where the lists of each of so many rows begin, when these rows have these lists and the others none."""
    starts = np.zeros(rows + 1, np.int32)
    starts[[row + 1 for row in which]] = [len(ids) for ids in lists]
    return starts.cumsum(dtype=np.int32)
