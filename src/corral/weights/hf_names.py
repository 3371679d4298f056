"""Tensors of a folder from their authors' names to canonical ones, by the patterns of a Published table."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from corral.errors import CorruptModel
from corral.weights.gguf import TensorInfo as Place
from corral.weights.source import Part, Pattern, TensorInfo

__all__ = ["Stored", "combine", "rename_beginning", "translate"]

# Multimodal models keep the language model inside; GGUF's names of what is not text begin with v. and mm.
BEGINNINGS = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    **dict.fromkeys(("vision_tower.", "model.vision_tower.", "visual.", "model.visual."), "v."),
    **dict.fromkeys(("multi_modal_projector.", "model.multi_modal_projector."), "mm."),
}
# Frequencies that old releases stored, although their configuration has what they are computed from.
REDUNDANT = ".rotary_emb.inv_freq"


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor lies, or that of one expert: in a shard's tensor, one of `of` equal parts."""

    shard: str
    place: Place
    part: int = 0
    of: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first: (n,) for a vector, (E, rows, cols) for a stack."""
        shape = list(self.place.shape)
        axis = max(len(shape) - 2, 0)
        if shape:
            shape[axis] //= self.of
        return tuple(shape)

    def matrices(self, data: memoryview) -> Iterator[memoryview]:
        """The bytes of the matrix, or of each one of a stack, out of those of the whole tensor."""
        stack = self.place.shape[0] if len(self.place.shape) > 2 else 1
        whole = len(data) // stack
        size = whole // self.of
        for start in range(self.part * size, len(data), whole):
            yield data[start : start + size]


@dataclass(frozen=True, slots=True)
class _Row:
    """A pattern: its canonical name, its place among alternatives, what numbers in a name stand for."""

    canonical: str
    choice: int
    part: Part
    letters: tuple[str, ...]

    def read(self, numbers: tuple[str, ...]) -> dict[str, str] | None:
        """The numbers by letter; None if a number that stands in the pattern itself is another."""
        pairs = [*zip(self.letters, numbers, strict=True)]
        if any(letter.isdigit() and letter != number for letter, number in pairs):
            return None
        return {letter.strip("{}"): number for letter, number in pairs}


_Experts = dict[int, tuple[str, Stored]]  # by number: the author's name of the tensor, and where it lies


def rename_beginning(name: str) -> str:
    """The name that a model of text alone would give the tensor."""
    for beginning, replacement in BEGINNINGS.items():
        if name.startswith(beginning):
            return replacement + name.removeprefix(beginning)
    return name


def combine(name: str, parts: tuple[Stored, ...]) -> TensorInfo:
    """The tensor, or the stack of all experts' tensors; CorruptModel if those differ."""
    first = parts[0]
    if any((part.shape, part.place.type) != (first.shape, first.place.type) for part in parts):
        raise CorruptModel(f"the tensors of '{name}' differ in shape or type from expert to expert")
    shape = first.shape if len(parts) == 1 else (len(parts), *first.shape)
    return TensorInfo(name, shape, first.place.type, sum(part.place.nbytes // part.of for part in parts))


def translate(stored: Mapping[str, Stored], patterns: Mapping[str, Pattern]) -> dict[str, tuple[Stored, ...]]:
    """The tensors by canonical name, a layer's experts under one; what fits no pattern keeps its name."""
    rows = _rows(patterns)
    found: dict[str, dict[int, _Experts]] = {}  # by canonical name, and by which of its patterns
    for name, tensor in stored.items():
        template, numbers = _abstract(name)
        for row in rows.get(template, ()):
            if (at := row.read(numbers)) is not None:
                choices = found.setdefault(row.canonical.format_map(at), {})
                choices.setdefault(row.choice, {})[int(at.get("e", 0))] = name, _cut(tensor, row.part)
    result, used = {}, set[str]()
    for canonical, choices in found.items():
        names, result[canonical] = _in_order(canonical, choices[min(choices)])
        used.update(names)
    left = (name for name in stored if name not in used and not name.endswith(REDUNDANT))
    return {name: (stored[name],) for name in left} | result


def _rows(patterns: Mapping[str, Pattern]) -> dict[str, list[_Row]]:
    """The patterns by the author's name with {} in place of every number."""
    rows: dict[str, list[_Row]] = {}
    for canonical, pattern in patterns.items():
        for choice, one in enumerate(pattern if isinstance(pattern, tuple) else (pattern,)):
            part = Part(one, 0, 1) if isinstance(one, str) else one
            template, letters = _abstract(part.tensor)
            rows.setdefault(template, []).append(_Row(canonical, choice, part, letters))
    return rows


def _abstract(name: str) -> tuple[str, tuple[str, ...]]:
    """A name with {} in place of every number (or letter that stands for one), and what they are."""
    pieces = name.split(".")
    numbers = [piece for piece in pieces if piece in ("{i}", "{e}") or (piece.isdecimal() and len(piece) < 6)]
    return ".".join("{}" if piece in numbers else piece for piece in pieces), tuple(numbers)


def _in_order(canonical: str, experts: _Experts) -> tuple[tuple[str, ...], tuple[Stored, ...]]:
    """The authors' names and the tensors of all experts."""
    count = max(experts) + 1
    missing = next((expert for expert in range(count) if expert not in experts), None)
    if missing is not None:
        raise CorruptModel(f"the tensor '{canonical}' lacks expert {missing} of {count}")
    names, tensors = zip(*(experts[expert] for expert in range(count)), strict=True)
    return names, tensors


def _cut(tensor: Stored, part: Part) -> Stored:
    shape = tensor.place.shape
    if shape and shape[max(len(shape) - 2, 0)] % part.of:
        raise CorruptModel(f"tensor '{tensor.place.name}' {list(shape)} does not have {part.of} equal parts")
    return replace(tensor, part=part.index, of=part.of)
