"""Mixtures of experts as families read them; what they compute: tests/families."""

from typing import Any

import pytest
from memory_source import MemorySource

from corral.errors import CorruptModel
from corral.models.experts import Mixture, read_mixture
from corral.models.ops import Activation


def read(**fields: Any) -> Mixture | None:
    return read_mixture(MemorySource("llama", fields).fields, 96, Activation.SILU)


def test_fields_say_how_many_experts_there_are_and_how_wide() -> None:
    assert read(expert_count=8, expert_used_count=2) == Mixture(8, 2, 96, True, Activation.SILU)
    sizes = {"expert_count": 8, "expert_used_count": 8, "expert_feed_forward_length": 32}
    assert read(**sizes, expert_weights_norm=False) == Mixture(8, 8, 32, False, Activation.SILU)


@pytest.mark.parametrize("fields", [{}, {"expert_count": 0, "expert_used_count": 0}])
def test_no_experts_are_no_mixture(fields: dict[str, int]) -> None:
    assert read(**fields) is None


@pytest.mark.parametrize("used", [0, 9, "2", 2**40])
def test_an_impossible_number_of_used_experts_is_named(used: Any) -> None:
    with pytest.raises(CorruptModel, match="expert_used_count"):
        read(expert_count=8, expert_used_count=used)
