"""A Hugging Face folder as a ModelSource: config.json and safetensors. Nothing in it is ever executed."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import msgspec

from corral.errors import CorruptModel, UnsupportedModel, UserError
from corral.weights.fields import Fields
from corral.weights.folder_files import FolderFiles
from corral.weights.hf_config import SPELLING, canonical_fields, is_meaningful, text_config
from corral.weights.hf_names import Stored, combine, rename_beginning, translate
from corral.weights.hf_text import read_text
from corral.weights.safetensors import SafetensorsFile
from corral.weights.source import Constant, Published, TensorInfo, TextAssets, prevailing_type

if TYPE_CHECKING:
    from corral.weights.qtensor import QTensor

__all__ = ["HFFolder"]

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
MAX_INDEX, MAX_COLONS = 16 << 20, 200_000  # bytes, and entries; the largest there are have 9 MB and 92,000
MAX_SHARDS = 1000
HEAD = "output.weight"


class _Index(msgspec.Struct, gc=False):
    weight_map: dict[str, str]


class HFFolder:
    """See ModelSource. Tensors have their authors' names until `named`."""

    format = "safetensors"

    def __init__(
        self,
        files: FolderFiles,
        config: Mapping[str, Any],
        shards: Mapping[str, SafetensorsFile],
        values: Mapping[str, Any],
        stored: Mapping[str, tuple[Stored, ...]],
    ):
        """`config` is the language model's, `values` its fields, `stored` where tensors and stacks lie."""
        self.name = files.name
        self.architecture: str = config["architectures"][0]
        self.fields = Fields(values, spelling=SPELLING, meaningful=is_meaningful)
        self.tensors: Mapping[str, TensorInfo] = {
            name: combine(name, parts) for name, parts in stored.items()
        }
        self.metadata: Mapping[str, Any] = {
            "general.architecture": self.architecture,
            "general.name": self.name,
            **{f"{self.architecture}.{name}": value for name, value in values.items()},
        }
        self.quantization = prevailing_type(self.tensors.values())
        self._files, self._config, self._shards = files, config, shards
        self._values, self._stored = values, stored
        self._places = {**stored}

    @classmethod
    def open(cls, root: Path) -> Self:
        """Map the folder's safetensors files and read their headers; the errors say what is wrong where."""
        files = FolderFiles(root)
        config = text_config(_read_config(files))
        shards = {name: SafetensorsFile(root / name) for name in _shard_names(files)}
        stored: dict[str, Stored] = {}
        for shard, file in shards.items():
            for place in file.tensors.values():
                name = rename_beginning(place.name)
                if name in stored:
                    raise CorruptModel(
                        f"{files.name}: tensor '{name}' is in '{shard}' and in another file too"
                    )
                stored[name] = Stored(shard, place)
        if config.get("tie_word_embeddings") is True:
            stored.pop("lm_head.weight", None)  # a copy of the embedding
        return cls(files, config, shards, canonical_fields(config), translate(stored, {}))

    @property
    def size(self) -> int:
        """Bytes of all safetensors files."""
        return sum(file.size for file in self._shards.values())

    @cached_property
    def text(self) -> TextAssets:
        """The vocabulary, the chat templates and the sampling defaults."""
        return read_text(self._files, self._config)

    def named(self, published: Published) -> "HFFolder":
        """The same folder by canonical names."""
        values = dict(self._values)
        for name, key in published.fields.items():
            if isinstance(key, Constant):
                values[name] = key.value
            elif (value := self._config.get(key)) is not None:
                values.pop(key, None)
                values[name] = value
        single = {name: parts[0] for name, parts in self._stored.items()}
        stored = translate(single, published.tensors)
        untied = self._config.get("tie_word_embeddings") is False and HEAD in published.tensors
        if untied and HEAD not in stored:
            raise CorruptModel(f"{self.name}: its head is no copy of the embedding, but '{HEAD}' is missing")
        self._places |= stored  # who was given tensors by their canonical names releases them by those
        return HFFolder(self._files, self._config, self._shards, values, stored)

    def tensor(self, name: str) -> "QTensor":
        """A tensor that views the files; one of several experts views several places."""
        from corral.weights.tensors import (
            view_tensor,
        )  # with an array library, which the server does not need

        if name not in self._stored:
            raise CorruptModel(f"{self.name}: the tensor '{name}' is missing")
        matrices = [
            matrix
            for part in self._stored[name]
            for matrix in part.matrices(self._shards[part.shard].tensor_bytes(part.place.name))
        ]
        return view_tensor(self.name, self.tensors[name], matrices)

    def release(self, name: str) -> None:
        """Give the pages of a tensor back."""
        for part in self._places[name]:
            self._shards[part.shard].release(part.place.name)

    def close(self) -> None:
        """End the use of the files."""
        for file in self._shards.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _read_config(files: FolderFiles) -> dict[str, Any]:
    """config.json; the errors say what a folder without a usable one may be instead."""
    if files.find(CONFIG) is None:
        if models := files.names(".gguf"):
            raise UnsupportedModel(
                f"{files.name} is a folder of GGUF files; name one of them: {', '.join(models[:5])}"
            )
        raise UnsupportedModel(f"{files.name} is not a model's folder: it has no {CONFIG}")
    config = files.read_json(CONFIG)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures or not isinstance(architectures[0], str):
        code = " Code that comes with a model is never run." if "auto_map" in config else ""
        raise UnsupportedModel(
            f"{files.name}: {CONFIG} does not say the model's architecture ('architectures').{code}"
        )
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise UnsupportedModel(
            f"{files.name}: its weights are quantized by {method!r:.80}, which this version cannot run; "
            "take the model in float16 or bfloat16, or a quantized .gguf file"
        )
    return config


def _shard_names(files: FolderFiles) -> list[str]:
    """The safetensors files: the single one, or those that the index names."""
    if files.find(SINGLE) is not None:
        return [SINGLE]
    index = files.read(INDEX, MAX_INDEX)
    if index is None:
        raise _weights_missing(files)
    if index.count(b":") > MAX_COLONS:
        raise CorruptModel(f"{files.name}: '{INDEX}' has too many entries")
    try:
        shards = [*dict.fromkeys(msgspec.json.decode(index, type=_Index).weight_map.values())]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptModel(f"{files.name}: '{INDEX}' is none: {error}") from None
    if not 0 < len(shards) <= MAX_SHARDS:
        raise CorruptModel(f"{files.name}: '{INDEX}' names {len(shards)} files, not 1 to {MAX_SHARDS}")
    if missing := [name for name in shards if files.find(name) is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise CorruptModel(
            f"{files.name}: files are missing: {', '.join(missing[:5])}{more}; download them again"
        )
    return shards


def _weights_missing(files: FolderFiles) -> UserError:
    pickles = [name for suffix in PICKLES for name in files.names(suffix)]
    if pickles:
        return UnsupportedModel(
            f"{files.name} has its weights in {pickles[0]}, a format that can run code when it is read; "
            "convert them to safetensors (in transformers: model.save_pretrained(FOLDER)), or take a release "
            "that has them"
        )
    return CorruptModel(f"{files.name} has no {SINGLE} and no {INDEX}: its weights are missing")
