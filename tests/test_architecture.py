"""ARCHITECTURE.md names files that are there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_file_that_the_architecture_names_exists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    named = re.findall(r"`((?:[\w.-]+/)+(?:[\w.-]+\.(?:py|h|cpp|toml|md))?|\w+\.(?:py|txt|md))`", text)
    assert len(named) > 40
    missing = [
        name for name in named if not any((base / name).exists() for base in (ROOT, ROOT / "src/corral"))
    ]
    assert not missing


def test_every_package_has_a_line_in_the_table_of_layers() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    packages = [path.parent.name for path in (ROOT / "src/corral").glob("*/__init__.py")]
    assert [name for name in packages if not re.search(rf"^\| .*`{name}`.* \|", text, re.MULTILINE)] == []


# What code above `weights` may know of it: models whatever their format.
OPEN_TO_ALL = {"fields", "formats", "groups", "open", "qtensor", "source"}
FORMATS = re.compile("gguf|safetensors", re.IGNORECASE)


def words_of_code(tree: ast.Module) -> Iterator[str]:
    """Every name and every text of a module, without its docstrings."""
    bodies = (
        node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    )
    docstrings = {id(body[0].value) for body in bodies if body and isinstance(body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value
        for field in ("id", "attr", "arg", "name", "module"):
            if isinstance(word := getattr(node, field, None), str):
                yield word


def test_only_weights_and_store_know_a_file_format() -> None:
    found = []
    for path in sorted((ROOT / "src/corral").rglob("*.py")):
        inside = path.relative_to(ROOT / "src/corral")
        if inside.parts[0] not in ("weights", "store"):
            tree = ast.parse(path.read_text("utf-8"))
            found += [f"{inside}: {word:.60}" for word in words_of_code(tree) if FORMATS.search(word)]
            modules = [
                node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
            ]
            readers = [name for name in modules if name.startswith("corral.weights.")]
            found += [f"{inside}: {name}" for name in readers if name.split(".")[2] not in OPEN_TO_ALL]
    assert found == []
