import pytest

from corral.models.kv_groups import KVGroup, group_layers


def test_layers_of_one_kind_are_one_group():
    assert group_layers([None] * 4) == (KVGroup(None, (0, 1, 2, 3)),)
    assert group_layers([32] * 2) == (KVGroup(32, (0, 1)),)


@pytest.mark.parametrize(("layers", "size", "groups"), [(18, 3, 6), (26, 2, 13), (34, 1, 34), (48, 8, 6)])
def test_groups_of_gemmas_are_as_large_as_both_kinds_allow(layers, size, groups):
    windows = [None if layer % 6 == 5 else 512 for layer in range(layers)]
    found = group_layers(windows)
    assert len(found) == groups and {len(group.layers) for group in found} == {size}
    assert sorted(layer for group in found for layer in group.layers) == list(range(layers))
    assert all(windows[layer] == group.window for group in found for layer in group.layers)
