"""Which layers of the KV cache share their pages.

A page holds some positions of one group of layers. All groups have as many layers, so that all pages have one
size and one pool serves them; the layers of a group see the same window, so that its old pages can be given
back as a sequence moves on.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers, by number, that see this many last tokens; None = all."""

    window: int | None
    layers: tuple[int, ...]


def group_layers(windows: Sequence[int | None]) -> tuple[KVGroup, ...]:
    """As few groups as there can be; `windows` has what each layer sees."""
    kinds = Counter(windows)
    size = math.gcd(*kinds.values())
    groups = []
    for window in kinds:
        layers = [layer for layer, seen in enumerate(windows) if seen == window]
        groups += [KVGroup(window, tuple(layers[i : i + size])) for i in range(0, len(layers), size)]
    return tuple(groups)
