"""What a model is, from its GGUF header: the facts that clients show and the store keeps."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from corral.store.local import StoredModel
from corral.weights.gguf import GGUFFile, open_gguf

# general.file_type, as llama.cpp numbers it.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    32: "BF16",
}
LONG_ARRAY = 5  # longer ones are left empty unless asked for
_LEFT_OUT = ("general.name", "tokenizer.chat_template")


def config_fields(path: Path) -> dict[str, Any]:
    """The fields of a store's config blob, in Ollama's names; raises what the GGUF reader raises."""
    with open_gguf(path) as file:
        return _config(file)


def _config(file: GGUFFile) -> dict[str, Any]:
    family = str(file.metadata.get("general.architecture", "unknown"))
    fields: dict[str, Any] = {
        "model_format": "gguf",
        "model_family": family,
        "model_families": [family],
        "model_type": human_count(parameter_count(file)),
        "file_type": _file_type(file),
    }
    for name in ("context_length", "embedding_length"):
        value = file.metadata.get(f"{family}.{name}")
        if isinstance(value, int):
            fields[name] = value
    return fields


def model_details(stored: StoredModel) -> dict[str, Any]:
    """Ollama's `details` object, without opening the model's file."""
    config = stored.config
    family = str(config.get("model_family") or "")
    details = {
        "parent_model": "",
        "format": str(config.get("model_format") or "gguf"),
        "family": family,
        "families": list(config.get("model_families") or ([family] if family else [])),
        "parameter_size": str(config.get("model_type") or ""),
        "quantization_level": str(config.get("file_type") or ""),
    }
    extra = {name: config[name] for name in ("context_length", "embedding_length") if config.get(name)}
    return {**details, **extra}


def model_row(stored: StoredModel) -> dict[str, Any]:
    """A row of /api/tags."""
    return {
        "name": stored.name.display,
        "model": stored.name.display,
        "modified_at": stored.modified_at.isoformat(),
        "size": stored.size,
        "digest": stored.digest,
        "details": model_details(stored),
        "capabilities": ["completion"],
    }


def model_card(stored: StoredModel, verbose: bool) -> dict[str, Any]:
    """What /api/show answers; fields that the model has not are left out."""
    info, tensors, template = model_info(stored.path, verbose=verbose)
    template = stored.template or template
    texts = {
        "license": stored.license,
        "parameters": parameters_text(stored.params),
        "template": template,
        "system": stored.system,
    }
    return {
        **{name: text for name, text in texts.items() if text},
        "modelfile": modelfile(stored, template),
        "details": model_details(stored),
        "model_info": info,
        "tensors": tensors,
        "capabilities": ["completion"],
        "modified_at": stored.modified_at.isoformat(),
    }


def model_info(path: Path, *, verbose: bool) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The header as /api/show tells it: metadata, tensors, and the chat template."""
    with open_gguf(path) as file:
        info = {key: _plain(value, verbose) for key, value in file.metadata.items() if key not in _LEFT_OUT}
        info["general.parameter_count"] = parameter_count(file)
        if verbose and "general.name" in file.metadata:
            info["general.name"] = file.metadata["general.name"]
        tensors = [
            {"name": tensor.name, "type": tensor.type, "shape": list(reversed(tensor.shape))}
            for tensor in file.tensors.values()
        ]
        return info, tensors, str(file.metadata.get("tokenizer.chat_template", ""))


def parameter_count(file: GGUFFile) -> int:
    """All weights of all tensors."""
    return sum(prod(tensor.shape) for tensor in file.tensors.values())


def human_count(count: int) -> str:
    """`134.52M`, `7.6B`: as Ollama writes parameter sizes."""
    for size, letter, places in ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 2)):
        if count >= size:
            return f"{count / size:.{places}f}{letter}"
    return str(count)


def parameters_text(params: Mapping[str, Any]) -> str:
    """`/api/show`'s parameters: a line each, the name padded to 30, text in double quotes."""
    lines = []
    for name, value in params.items():
        for each in value if isinstance(value, list) else [value]:
            shown = f'"{_escaped(each)}"' if isinstance(each, str) else _number(each)
            lines.append(f"{name:<30} {shown}")
    return "\n".join(lines)


def modelfile(stored: StoredModel, template: str) -> str:
    """A Modelfile that would make this model."""
    lines = ["# Modelfile generated by corral", f"FROM {stored.path}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    if stored.system:
        lines.append(f'SYSTEM """{stored.system}"""')
    lines += [f"PARAMETER {line}" for line in parameters_text(stored.params).splitlines()]
    if stored.license:
        lines.append(f'LICENSE """{stored.license}"""')
    return "\n".join(lines) + "\n"


def _file_type(file: GGUFFile) -> str:
    number = file.metadata.get("general.file_type")
    if isinstance(number, int) and number in FILE_TYPES:
        return FILE_TYPES[number]
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name]) if sizes else "unknown"


def _plain(value: Any, verbose: bool) -> Any:
    if isinstance(value, str | bytes | int | float) or not isinstance(value, Sequence | memoryview):
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not verbose and len(value) > LONG_ARRAY:
        return []
    return [_plain(item, verbose) for item in value]


def _escaped(text: str) -> str:
    return (
        text.replace("\\", "\\\\")
        .replace('"', '\\"')
        .replace("\n", "\\n")
        .replace("\t", "\\t")
        .replace("\r", "\\r")
    )


def _number(value: Any) -> str:
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
