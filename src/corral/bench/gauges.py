"""Readings of a server while it works: memory of its processes, use of its KV cache."""

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from corral.bench.exchange import BadReply, fetch
from corral.bench.machine import ProcessTree
from corral.bench.target import Target

_PATHS = {"corral": "/health/ready", "vllm": "/metrics", "llama-server": "/metrics"}
_RATIO = re.compile(
    rb"^(?:vllm:(?:kv|gpu)_cache_usage_perc|llamacpp:kv_cache_usage_ratio)(?:\{[^}]*\})? ([0-9.eE+-]+)",
    re.MULTILINE,
)


@dataclass(slots=True)
class Gauges:
    """Collects readings of one server; `read` is called about once a second."""

    target: Target
    tree: ProcessTree | None
    memory: list[int] = field(default_factory=list)
    kv_used: list[float] = field(default_factory=list)  # share of the pool
    kv_waste: list[float] = field(default_factory=list)  # share of what is allocated that no token uses
    silent: bool = False  # this server reports nothing of its cache

    def read(self) -> None:
        """Read the memory, and the use of the KV cache if the server reports it."""
        if self.tree:
            self.memory.append(self.tree.memory())
        path = _PATHS.get(self.target.kind.name)
        if not path or self.silent:
            return
        try:
            said = asyncio.run(fetch(self.target.address, path, limit=5.0))
        except BadReply as error:
            self.silent = bool(error.status)
            return
        if self.target.kind.name == "corral":
            self._read_corral(said)
        elif found := _RATIO.search(said):
            self.kv_used.append(float(found[1]))

    def _read_corral(self, said: bytes) -> None:
        try:
            models: list[dict[str, Any]] = msgspec.json.decode(said)["models"]
            for model in models:
                if model["blocks_used"]:
                    self.kv_used.append(model["blocks_used"] / model["num_blocks"])
                    slots = model["blocks_used"] * model["block_size"]
                    self.kv_waste.append(1 - model["tokens_held"] / slots)
        except (msgspec.DecodeError, TypeError, KeyError, ZeroDivisionError):
            self.silent = True

    def figures(self) -> dict[str, float]:
        """The peak of memory and of KV use, and the mean share of allocated KV memory that no token used."""
        figures: dict[str, float] = {}
        if any(self.memory):
            figures["peak_memory"] = max(self.memory)
        if self.kv_used:
            figures["kv_used_peak"] = max(self.kv_used)
        if self.kv_waste:
            figures["kv_waste_mean"] = sum(self.kv_waste) / len(self.kv_waste)
        return figures
