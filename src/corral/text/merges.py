"""Whether the merges of a tokenizer.json are what SentencePiece's vocabulary implies.

SentencePiece merges any two neighbours that together are a piece, the best piece first. A tokenizer.json
that was made from its vocabulary says the same by listing, for piece after piece, every pair that makes it.
One that was trained as BPE lists one pair for each piece, and other pairs must not merge. Half a million
merges take a quarter of a second and 80 MB to read, so that only some stretches of the list are looked at.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

__all__ = ["merges_follow_pieces"]

STRETCHES, STRETCH = 16, 32 << 10  # how many, and how many bytes each
# Between two merges: those of the form ["a", "b"], those of the form "a b".
_BETWEEN_PAIRS = re.compile(rb'"\s*\](\s*,)\s*\[\s*"')
_BETWEEN_TEXTS = re.compile(rb'(?<!\\)"(\s*,)\s*"')
_decode = msgspec.json.Decoder(list[str | tuple[str, str]]).decode


def merges_follow_pieces(merges: memoryview, pieces: Mapping[str, int], tokens: Sequence[bytes]) -> bool:
    """Whether each piece's merges, as far as was looked, are all there and stand in the order of the pieces.

    `pieces` are the ids of what merging makes or starts from, `tokens` all texts by id.
    """
    for start, stretch in _stretches(merges):
        try:
            pairs = [*map(_split, _decode(stretch))]
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            return False
        made = {pieces.get(piece, -1): {*group} for piece, group in itertools.groupby(pairs, "".join)}
        if not made or -1 in made or [*made] != sorted(made):
            return False
        order = [*made]  # merges of the first and of the last may stand outside the stretch
        whole = range(order[0] + 1 if start else 0, order[-1])
        if any(not _ways(tokens[id].decode(), pieces) <= made.get(id, set()) for id in whole):
            return False
    return True


def _stretches(merges: memoryview) -> Iterator[tuple[int, bytes]]:
    """Parts of the array, each an array of whole merges, and where they begin."""
    if len(merges) <= STRETCH * STRETCHES:
        yield 0, bytes(merges)
        return
    form = _BETWEEN_PAIRS if bytes(merges[1:200]).lstrip().startswith(b"[") else _BETWEEN_TEXTS
    for number in range(STRETCHES):
        at = number * (len(merges) - STRETCH) // (STRETCHES - 1)
        window = bytes(merges[at : at + STRETCH])
        cuts = [match.span(1) for match in form.finditer(window)]
        if not cuts:
            yield at, b"[]"
        elif at == 0:
            yield at, window[: cuts[-1][0]] + b"]"
        else:
            yield at, b"[" + window[cuts[0][1] : cuts[-1][0]] + b"]"


def _split(merge: str | tuple[str, str]) -> tuple[str, str]:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left, right


def _ways(text: str, pieces: Mapping[str, int]) -> set[tuple[str, str]]:
    """All pairs of pieces that make the text, if it is one itself."""
    cuts = range(1, len(text)) if text in pieces else ()
    pairs = ((text[:cut], text[cut:]) for cut in cuts)
    return {pair for pair in pairs if pair[0] in pieces and pair[1] in pieces}
