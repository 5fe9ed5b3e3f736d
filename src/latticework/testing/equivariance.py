"""One checker for everything that promises a symmetry: networks, layers, functions; points, vectors, graphs; float32 and float64.

    from latticework.layers.frames import SE3, Sn
    from latticework.testing.equivariance import check_equivariance, check_graphs

    check_equivariance(net, SE3(), points, output="vectors")
    check_equivariance(net, E3(), {"points": X, "vectors": V}, output=("points", "invariant"))
    check_equivariance(net, Sn(), {"graph": A, "nodes": x}, output="nodes")
    check_graphs(net, [data, …], output="nodes")            # a network of PyG batches, under renumbering of nodes and edges

A check that cannot fail proves nothing: the answer must be finite, and must depend on the input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from latticework.layers.frames import equivariance_error

TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 5e-2, torch.bfloat16: 2e-1}


def check_equivariance(
    fn: Callable[..., Any],
    group: Any,
    inputs: Tensor | Mapping[str, Tensor] | Sequence[tuple[str, Tensor]],
    output: str | Sequence[str] = "invariant",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    *,
    tolerance: float | Mapping[torch.dtype, float] | None = None,
    trials: int = 3,
    seed: int = 0,
    alive: bool = True,
) -> dict[torch.dtype, float]:
    """``fn(g X) = g fn(X)`` for random g of the group, in each dtype; the largest relative errors found, by dtype.

    `group` is one of `layers.frames`, or anything whose ``random(tensor, generator)`` gives an element with ``act(tensor, kind)``.
    `inputs`: points alone, or tensors by kind (pairs, where a kind comes twice), in the order of fn's arguments; floating ones are cast, and
    so is fn where it is a module (a copy; the given one is left alone, and stays in its mode). `output`: the kind of the answer, or of each.
    `tolerance`: of ``max |difference| / max(1, max |answer|)``; left out, 1e-4 in float32 and 1e-10 in float64. `alive` false lets an answer
    be that does not depend on the input. ``AssertionError`` says dtype, trial and error.
    """
    if isinstance(inputs, Tensor):
        pairs = [("points", inputs)]
    else:
        pairs = list(inputs.items()) if isinstance(inputs, Mapping) else list(inputs)
    found: dict[torch.dtype, float] = {}
    name = getattr(group, "name", type(group).__name__)
    for dtype in dtypes:
        allowed = tolerance if isinstance(tolerance, float | int) else {**TOLERANCES, **(tolerance or {})}[dtype]
        mine = copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else fn
        cast = [(kind, X.to(dtype) if X.is_floating_point() else X) for kind, X in pairs]
        generator = torch.Generator().manual_seed(seed)
        worst = 0.0
        for trial in range(trials):
            error = equivariance_error(_seeded(mine, seed), group, cast, output, generator)
            assert error <= allowed, (
                f"not {'in' if output == 'invariant' else 'equi'}variant under {name}: error {error:.3g} in {dtype} (trial {trial}, "
                f"output {output}; at most {allowed:g} is allowed)"
            )
            worst = max(worst, error)
        if alive:
            _check_alive(_seeded(mine, seed), cast, generator)
        found[dtype] = worst
    return found


def _seeded(fn: Callable[..., Any], seed: int) -> Callable[..., Any]:
    """The same draws in every call: a dropout mask is no broken symmetry, a mask for each element is."""

    def call(*args: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fn(*args)

    return call


def _check_alive(fn: Callable[..., Any], pairs: Sequence[tuple[str, Tensor]], generator: torch.Generator) -> None:
    def other(kind: str, X: Tensor) -> Tensor:
        if not X.is_floating_point():
            return X
        noise = torch.randn(X.shape, generator=generator, dtype=torch.float64).to(X)
        if kind == "graph":
            noise = (noise + noise.transpose(1, 2)) / 2
        return X + noise * X.std().clamp(min=0.1)

    def flat(out: Any) -> Tensor:
        return torch.cat([v.flatten() for v in (out if isinstance(out, tuple | list) else (out,))])

    with torch.no_grad():
        before, after = flat(fn(*(X for _, X in pairs))), flat(fn(*(other(kind, X) for kind, X in pairs)))
    assert bool(torch.isfinite(before).all()), "the answer is not finite"
    assert not torch.allclose(before, after, rtol=1e-6, atol=1e-9), (
        "the answer does not depend on the input, so its symmetry says nothing; pass alive=False if that is meant"
    )


def renumbered(graph: Any, generator: torch.Generator | None = None) -> tuple[Any, Tensor]:
    """A PyG `Data` with nodes numbered anew and edges in another order, and the order: new node i was node ``order[i]``.

    Attributes move with nodes or edges as PyG sees them (`is_node_attr`, `is_edge_attr`), and attributes of node numbers (``index`` in the
    name, other than `edge_index`) are renumbered.
    """
    n, m = int(graph.num_nodes), int(graph.num_edges)
    order = torch.randperm(n, generator=generator)
    place = order.argsort()
    edges = torch.randperm(m, generator=generator)
    new = copy.copy(graph)
    for key in list(graph.keys()):
        value = graph[key]
        if not isinstance(value, Tensor):
            continue
        if key == "edge_index":
            new[key] = place[value][:, edges]
        elif key.endswith("index"):
            new[key] = place[value]
        elif graph.is_node_attr(key) and value.shape[:1] == (n,):
            new[key] = value[order]
        elif graph.is_edge_attr(key) and value.shape[:1] == (m,):
            new[key] = value[edges]
    return new, order


def check_graphs(
    fn: Callable[[Any], Tensor],
    graphs: Sequence[Any],
    output: str = "invariant",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    *,
    tolerance: float | Mapping[torch.dtype, float] | None = None,
    trials: int = 2,
    seed: int = 0,
    prepare: Callable[[list[Any]], list[Any]] | None = None,
) -> dict[torch.dtype, float]:
    """A network of PyG batches under renumbering: ``invariant`` [G, ...] answers stay, ``nodes`` [n, ...] move with the nodes.

    `prepare` is what a recipe adds to the graphs beforehand; it is part of what is checked. Else as `check_equivariance`.
    """
    from torch_geometric.data import Batch

    if output not in ("invariant", "nodes"):
        raise ValueError(f"an answer about graphs is invariant or nodes, not {output!r}")
    found: dict[torch.dtype, float] = {}
    for dtype in dtypes:
        allowed = tolerance if isinstance(tolerance, float | int) else {**TOLERANCES, **(tolerance or {})}[dtype]
        mine = copy.deepcopy(fn).to(dtype) if isinstance(fn, nn.Module) else fn
        call, generator, worst = _seeded(mine, seed), torch.Generator().manual_seed(seed), 0.0

        def answer(given: list[Any], call: Any = call, dtype: torch.dtype = dtype) -> Tensor:
            ready = prepare(given) if prepare is not None else given
            batch = Batch.from_data_list(list(ready))
            batch = batch.apply(lambda v: v.to(dtype) if v.is_floating_point() else v)
            with torch.no_grad():
                return call(batch)  # type: ignore[no-any-return]

        before = answer(list(graphs))
        assert bool(torch.isfinite(before).all()), "the answer is not finite"
        for trial in range(trials):
            moved = [renumbered(g, generator) for g in graphs]
            after = answer([g for g, _ in moved])
            wanted = before
            if output == "nodes":
                starts = torch.tensor([0, *(int(g.num_nodes) for g in graphs)]).cumsum(0)[:-1]
                wanted = before[torch.cat([order + start for (_, order), start in zip(moved, starts, strict=True)])]
            error = float((after - wanted).abs().max() / wanted.abs().max().clamp(min=1.0))
            assert error <= allowed, f"{output} answers change with the numbering: error {error:.3g} in {dtype} (trial {trial})"
            worst = max(worst, error)
        found[dtype] = worst
    return found
