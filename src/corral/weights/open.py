"""Opens a model whatever its format."""

from pathlib import Path

from corral.errors import UnsupportedModel
from corral.weights.gguf_source import GGUFSource
from corral.weights.source import ModelSource

__all__ = ["open_source"]


def open_source(path: Path | str) -> ModelSource:
    """The model in a GGUF file (any part of one in several) or in a Hugging Face folder."""
    path = Path(path)
    if path.is_dir():
        from corral.weights.hf_folder import HFFolder  # not needed where the store has files alone

        return HFFolder.open(path)
    if path.suffix == ".safetensors":
        raise UnsupportedModel(f"{path.name} is a part of a model; name the folder in which it lies")
    return GGUFSource.open(path)
