"""The manifest: which blobs make up a model, as Ollama and docker write it."""

import json
import re
from dataclasses import dataclass
from typing import Any

from corral.errors import CorruptModel

MODEL = "application/vnd.ollama.image.model"
TEMPLATE = "application/vnd.ollama.image.template"
SYSTEM = "application/vnd.ollama.image.system"
PARAMS = "application/vnd.ollama.image.params"
LICENSE = "application/vnd.ollama.image.license"
REFERENCE = "application/vnd.corral.reference"  # see reference.py
CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

MAX_BYTES = 4 << 20
MAX_LAYERS = 10_000


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of a model: its role, its `sha256:<64 hex>` and its size in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model's blobs, each digest checked for its form."""

    config: Layer
    layers: tuple[Layer, ...]

    @classmethod
    def parse(cls, data: bytes) -> "Manifest":
        """Read a manifest; CorruptModel if it is not one."""
        if len(data) > MAX_BYTES:
            raise CorruptModel(f"the manifest has {len(data)} bytes; the limit is {MAX_BYTES}")
        try:
            raw = json.loads(data)
            layers = raw["layers"]
            if len(layers) > MAX_LAYERS:
                raise CorruptModel(f"the manifest lists {len(layers)} layers; the limit is {MAX_LAYERS}")
            return cls(_layer(raw["config"]), tuple(_layer(layer) for layer in layers))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise CorruptModel(f"the manifest is not one ({type(error).__name__}: {error})") from None

    def encode(self) -> bytes:
        """The bytes to store; their sha256 is the model's digest."""
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": _encode_layer(self.config),
            "layers": [_encode_layer(layer) for layer in self.layers],
        }
        return json.dumps(body, separators=(",", ":")).encode()

    def layer(self, media_type: str) -> Layer | None:
        """The first layer of that role."""
        return next((layer for layer in self.layers if layer.media_type == media_type), None)

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """Every blob, the config first, each once."""
        return tuple({layer.digest: layer for layer in (self.config, *self.layers)}.values())

    @property
    def size(self) -> int:
        """Bytes of the layers and the config."""
        return self.config.size + sum(layer.size for layer in self.layers)


def digest_hex(digest: str) -> str:
    """The 64 hex digits of `sha256:...`; CorruptModel for anything else, so that no path is made of it."""
    match = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
    if not match:
        raise CorruptModel(f"'{digest[:100]}' is not a digest like sha256:<64 hex digits>")
    return match[1]


def _layer(raw: Any) -> Layer:
    media_type, digest, size = raw["mediaType"], raw["digest"], raw["size"]
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise TypeError("mediaType and digest must be strings")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise TypeError("size must be a whole number")
    digest_hex(digest)
    return Layer(media_type, digest, size)


def _encode_layer(layer: Layer) -> dict[str, Any]:
    return {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
