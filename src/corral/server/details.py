"""What a model is, as its files say: the facts that clients show and the store keeps."""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from corral.models.table import family_name
from corral.store.local import Facts, StoredModel
from corral.weights.open import open_source
from corral.weights.source import DEFAULT_TEMPLATE, ModelSource

LONG_ARRAY = 5  # longer ones are left empty unless asked for
_LEFT_OUT = ("general.name", "tokenizer.chat_template")


def model_facts(path: Path) -> Facts:
    """What the store keeps of a file or folder; raises what is wrong with it."""
    with open_source(path) as source:
        family = family_name(source.architecture)
        config: dict[str, Any] = {
            "model_format": source.format,
            "model_family": family,
            "model_families": [family],
            "model_type": human_count(parameter_count(source)),
            "file_type": source.quantization,
        }
        for name in ("context_length", "embedding_length"):
            value = source.fields.get(name)
            if isinstance(value, int):
                config[name] = value
        return Facts(config, source.text.sampling, source.size)


def model_details(stored: StoredModel) -> dict[str, Any]:
    """Ollama's `details` object, without opening the model's file."""
    config = stored.config
    family = str(config.get("model_family") or "")
    details = {
        "parent_model": "",
        "format": stored.format,
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
    with open_source(path) as source:
        own, family = f"{source.architecture}.", f"{family_name(source.architecture)}."
        info = {
            key.replace(own, family, 1) if key.startswith(own) else key: _plain(value, verbose)
            for key, value in source.metadata.items()
            if key not in _LEFT_OUT
        }
        info["general.architecture"] = family_name(source.architecture)
        info["general.parameter_count"] = parameter_count(source)
        if verbose and "general.name" in source.metadata:
            info["general.name"] = source.metadata["general.name"]
        tensors = [
            {"name": tensor.name, "type": tensor.type, "shape": list(reversed(tensor.shape))}
            for tensor in source.tensors.values()
        ]
        return info, tensors, source.text.templates.get(DEFAULT_TEMPLATE, "")


def parameter_count(source: ModelSource) -> int:
    """All weights of all tensors."""
    return sum(prod(tensor.shape) for tensor in source.tensors.values())


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
