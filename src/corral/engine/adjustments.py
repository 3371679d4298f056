"""What changes logits before sampling (masks, bias, penalties), as arrays over the rows of a batch.

Most requests ask for none of it, so only those that do are walked.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from corral.engine.request import Request
from corral.executors.batch import I32, Bias, Masks, Penalties

Adjusted = list[tuple[Request, int]]  # requests with the first of their rows; drafts have the rows behind it


def masks_of(adjusted: Adjusted, rows: int) -> Masks | None:
    """Which tokens are allowed in each of so many rows."""
    found = [
        (row, mask)
        for request, row, ahead in _rows_of(adjusted)
        if (mask := request.mask_of(request.replied + ahead)) is not None
    ]
    if not found:
        return None
    which = np.full(rows, -1, np.int32)
    which[[row for row, _ in found]] = range(len(found))
    return Masks(which, np.stack([mask for _, mask in found]))


def bias_of(adjusted: Adjusted, rows: int) -> Bias | None:
    """What is added to logits in each of so many rows."""
    found = [(row, *request.bias) for request, row, _ in _rows_of(adjusted) if request.bias]
    if not found:
        return None
    where, ids, values = zip(*found, strict=True)
    return Bias(_starts(where, ids, rows), np.concatenate(ids), np.concatenate(values))


def penalties_of(adjusted: Adjusted, rows: int) -> Penalties | None:
    """What penalties look at in each of so many rows."""
    found: list[tuple[int, I32, I32]] = []
    for request, first in adjusted:
        if request.penalties:
            seen = request.penalties.with_each(request.sequence.drafts)
            found += ((row, *entries) for row, entries in enumerate(seen, first))
    if not found:
        return None
    where, ids, counts = zip(*found, strict=True)
    return Penalties(_starts(where, ids, rows), np.concatenate(ids), np.concatenate(counts))


def _rows_of(adjusted: Adjusted) -> Iterator[tuple[Request, int, int]]:
    """Each row with its request and the number of drafts before the token that it tells of."""
    for request, first in adjusted:
        for ahead in range(1 + len(request.sequence.drafts)):
            yield request, first + ahead, ahead


def _starts(where: Iterable[int], lists: Sequence[I32], rows: int) -> I32:
    """Where the lists of so many rows begin, when these rows have these lists and the others none."""
    starts = np.zeros(rows + 1, np.int32)
    starts[[row + 1 for row in where]] = [len(ids) for ids in lists]
    return starts.cumsum(dtype=np.int32)
