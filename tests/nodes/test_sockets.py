"""The sockets that wrappers use: two stages, and several feature matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latticework.core.dataset import open_data
from latticework.core.errors import UserError
from latticework.core.grid import entry_of, task_of
from latticework.nodes.network import FirstMaps, backbones_with


def built(name: str, inputs: int = 1) -> tuple[Any, tuple[Any, ...]]:
    data = open_data("karate")
    part = task_of("node-classification").for_data(data).fold(data, "random-0").train
    method: Any = entry_of(name)
    torch.manual_seed(0)
    net = method.module(len(part.schema["features"]), len(part.schema["classes"]), part.schema, inputs)
    return net, method.inputs(part, "cpu")


def test_who_has_them() -> None:
    assert {"gcn", "gat", "sage", "mlp", "dagnn", "appnp"} <= set(backbones_with("encode_head"))
    assert {"gcn", "gat", "sage", "mlp"} <= set(backbones_with("many_inputs"))
    assert "dagnn" not in backbones_with("many_inputs") and "majority" not in backbones_with("encode_head")


@pytest.mark.parametrize("name", ["mlp", "mlp(layers=1)", "gcn", "gcn(layers=3; residual=true)", "gat", "sage", "dagnn", "appnp"])
def test_two_stages_are_the_network(name: str) -> None:
    net, inputs = built(name)
    torch.manual_seed(1)
    whole = net(*inputs)
    torch.manual_seed(1)
    h = net.encode(*inputs)
    assert torch.equal(net.head(h, *inputs[1:]), whole)


@pytest.mark.parametrize("name", ["mlp", "gcn", "gcn(norm=batch; residual=true)", "gat", "sage"])
def test_several_inputs(name: str) -> None:
    """Each matrix has a map of its own: with the maps of all but one silenced, only that one counts."""
    net, inputs = built(name, inputs=3)
    net.eval()
    x = inputs[0].dense() if hasattr(inputs[0], "dense") else inputs[0]
    many = [x, torch.rand_like(x), torch.rand_like(x)]
    out = net(many, *inputs[1:])
    assert out.shape[1] == 4
    changed = net([x, many[1] + 1, many[2]], *inputs[1:])
    assert not torch.allclose(out, changed)
    first = net.maps[0] if name == "mlp" else net.convolutions[0]
    assert isinstance(first, FirstMaps) and len(first.maps) == 3
    with pytest.raises(ValueError, match="2 feature matrices were given, the network reads 3"):
        net(many[:2], *inputs[1:])


def test_one_layer_cannot_join_several() -> None:
    with pytest.raises(UserError, match="two layers or more"):
        built("gcn(layers=1)", inputs=2)
