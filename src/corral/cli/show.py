"""`corral show`."""

import argparse
import json
from typing import Any

from corral.cli.exits import OK
from corral.cli.models import open_models
from corral.cli.render import table
from corral.config import Settings

PARTS = ("license", "modelfile", "parameters", "template", "system")


def configure(parser: argparse.ArgumentParser) -> None:
    """The model, and which part of it."""
    parser.add_argument("model")
    group = parser.add_mutually_exclusive_group()
    for part in PARTS:
        group.add_argument(
            f"--{part}", dest="part", action="store_const", const=part, help=f"only its {part}"
        )
    parser.add_argument("-v", "--verbose", action="store_true", help="metadata and tensors too")


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """Print the facts, or one part."""
    answer = open_models(settings).show(arguments.model, arguments.verbose)
    if arguments.json:
        print(json.dumps(answer, indent=2))
    elif arguments.part:
        print(str(answer.get(arguments.part) or "").rstrip("\n"))
    else:
        print(facts(answer, verbose=arguments.verbose))
    return OK


def facts(answer: dict[str, Any], *, verbose: bool = False) -> str:
    """/api/show's answer for people, in sections."""
    info, details = answer.get("model_info") or {}, answer.get("details") or {}
    family = str(info.get("general.architecture") or details.get("family") or "")
    rows = {
        "architecture": family,
        "parameters": details.get("parameter_size"),
        "context length": info.get(f"{family}.context_length"),
        "embedding length": info.get(f"{family}.embedding_length"),
        "quantization": details.get("quantization_level"),
    }
    sections = [_section("Model", {name: str(value) for name, value in rows.items() if value})]
    sections.append(_lines("Capabilities", answer.get("capabilities") or []))
    sections.append(_lines("Parameters", str(answer.get("parameters") or "").splitlines()))
    if verbose:
        sections.append(_section("Metadata", {name: _short(value) for name, value in sorted(info.items())}))
        sections.append(_tensors(answer.get("tensors") or []))
    sections.append(_lines("System", str(answer.get("system") or "").splitlines()))
    sections.append(_lines("License", str(answer.get("license") or "").strip().splitlines()[:2]))
    return "\n\n".join(section for section in sections if section)


def _section(title: str, rows: dict[str, str]) -> str:
    width = max((len(name) for name in rows), default=0)
    return _lines(title, [f"{name:<{width}}    {value}" for name, value in rows.items()])


def _lines(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"  {line}" for line in lines)]) if lines else ""


def _tensors(tensors: list[dict[str, Any]]) -> str:
    rows = [(each["name"], each["type"], str(each["shape"])) for each in tensors]
    return _lines("Tensors", table(("NAME", "TYPE", "SHAPE"), rows).splitlines()) if rows else ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
