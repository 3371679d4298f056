"""How much memory models may take.

Unless the operator says otherwise (`CORRAL_MEMORY`, `CORRAL_KV_CACHE`):

- all models together get 80 % of what was free when the server started;
- a model's weights are counted as its file's size and a tenth;
- a model's KV cache gets a quarter of what was free (or of `CORRAL_MEMORY`), more if one full context needs
  it and that is at most half, never more than all its sequences could use with full contexts, and no more
  than its weights leave of the whole. Layers that see a window need no more than the window and a step.

KV memory is reserved and not touched: a page becomes real when the first token is stored in it.
"""

from dataclasses import dataclass

from corral.config import Settings
from corral.models.cache import CacheSpec, KVLayer
from corral.models.config import ModelConfig

_LEAST = 2048  # tokens: with less memory a model is refused rather than crippled


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """What one model needs, in bytes."""

    weights: int
    kv: int

    @property
    def total(self) -> int:
        """Weights and KV cache."""
        return self.weights + self.kv


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What all models may take together, and what a KV cache may be by default."""

    total: int
    kv_base: int  # what the KV cache's quarter is taken of

    @classmethod
    def of(cls, settings: Settings, available: int) -> "MemoryBudget":
        """The budget when so much memory is free at the start."""
        if settings.memory_budget:
            return cls(settings.memory_budget, settings.memory_budget)
        return cls(available * 4 // 5, available)

    def need(self, config: ModelConfig, file_size: int, settings: Settings) -> ModelMemory:
        """What a model will take."""
        weights = file_size * 11 // 10
        return ModelMemory(weights, settings.kv_cache or self._kv(config, settings, self.total - weights))

    def _kv(self, config: ModelConfig, settings: Settings, left: int) -> int:
        """The default; what the weights leave where that is less but enough to talk."""
        context = min(settings.context_length or config.context_length, config.context_length)
        one = kv_bytes(config, context, settings.batch_tokens)
        share = self.kv_base // 4
        if share < one <= self.kv_base // 2:
            share = one
        most = min(share, one * settings.max_sequences)
        return left if kv_bytes(config, _LEAST, settings.batch_tokens) <= left < most else most


def kv_bytes(config: ModelConfig, tokens: int, chunk: int) -> int:
    """Bytes of K and V that a sequence of so many tokens takes at most, computed `chunk` at once."""
    shape = config.kv_heads, config.head_dim, config.head_dim
    return CacheSpec.of([KVLayer(*shape, window) for window in config.windows]).bytes_needed(tokens, chunk)
