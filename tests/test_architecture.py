"""ARCHITECTURE.md names files that are there."""

import re
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
