"""How much memory models may take.

Unless the operator says otherwise (`CORRAL_MEMORY`, `CORRAL_KV_CACHE`):

- all models together get 80 % of what was free when the server started;
- a model's KV cache gets a quarter of what was free (or of `CORRAL_MEMORY`), more if one full context needs
  it and that is at most half, never more than all its sequences could use with full contexts, and no more
  than its weights leave of the whole, as long as that is of use.

What a model needs is what its engine process says before it takes anything. KV memory is reserved and not
touched: a page becomes real when the first token is stored in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from corral.config import Settings
from corral.engine.protocol import Need
from corral.types import DeviceMemory


def total_bytes(memory: Mapping[str, DeviceMemory]) -> int:
    """What all devices' parts are together: one budget is for all, as the only device is the CPU."""
    return sum(part.total for part in memory.values())


@dataclass(frozen=True, slots=True)
class MemoryBudget:
    """What all models may take together, and what a KV cache may be by default; in bytes."""

    total: int
    kv_base: int  # what the KV cache's quarter is taken of

    @classmethod
    def of(cls, settings: Settings, available: int) -> "MemoryBudget":
        """The budget when so much memory is free at the start."""
        if settings.memory_budget:
            return cls(settings.memory_budget, settings.memory_budget)
        return cls(available * 4 // 5, available)

    def kv_bytes(self, need: Need, settings: Settings) -> int:
        """The KV cache of a model with this need."""
        if settings.kv_cache:
            return settings.kv_cache
        left = self.total - total_bytes(need.memory)
        share = self.kv_base // 4
        if share < need.kv_context <= self.kv_base // 2:
            share = need.kv_context
        most = min(share, need.kv_context * settings.max_sequences)
        return left if need.kv_least <= left < most else most
