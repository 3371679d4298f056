"""How the tests of families open a checkpoint: the one place that names the project's readers."""

from pathlib import Path

from corral.models.program import Program
from corral.models.table import build_program
from corral.weights.open import open_source


def open_program(path: Path) -> Program:
    """The Program of a GGUF file or of a folder."""
    return build_program(open_source(path))
