"""HEI: the pattern against a double loop, the penalties against autograd, and what the official form really is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from latticework.nodes.hei import (
    EnvironmentNet,
    environment_means,
    gap_penalty,
    head_losses,
    head_parameters,
    irm_penalty,
    neighbour_pattern,
    official_penalty,
    standard,
)


def edges_of(n: int, m: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, n, (2, m))


def by_loops(x: np.ndarray, edges: np.ndarray, similarity: str, undirected: bool) -> np.ndarray:
    """The definition: neighbours as sets, loops out, a double loop."""
    n = len(x)
    near: list[set[int]] = [set() for _ in range(n)]
    for u, v in edges.T.tolist():
        if u != v:
            near[u].add(v)
            if undirected:
                near[v].add(u)
    z = np.zeros(n)
    for i in range(n):
        for j in sorted(near[i]):
            value = float(x[i] @ x[j]) if similarity == "cos" else float(np.sqrt(((x[i] - x[j]) ** 2).sum()))
            z[i] += value / len(near[i])
    return z


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(2, 30), m=st.integers(1, 90), seed=st.integers(0, 999), similarity=st.sampled_from(["norm2", "cos"]),
    undirected=st.booleans(),
)  # fmt: skip
def test_pattern_equals_the_double_loop(n: int, m: int, seed: int, similarity: str, undirected: bool) -> None:
    edges, x = edges_of(n, m, seed), np.random.default_rng(seed).normal(size=(n, 5))
    if (edges[0] == edges[1]).all():
        with pytest.raises(ValueError, match="no node has a neighbour"):
            neighbour_pattern(x, edges, similarity, undirected)  # type: ignore[arg-type]
        return
    found = neighbour_pattern(x.astype(np.float32), edges, similarity, undirected)  # type: ignore[arg-type]
    wanted = by_loops(x.astype(np.float32).astype(np.float64), edges, similarity, undirected)
    assert found.dtype == np.float32 and np.abs(found - wanted).max() < 1e-6


def test_pattern_of_a_star() -> None:
    x = np.array([[0.0], [3.0], [4.0], [9.0]])
    assert neighbour_pattern(x, np.array([[0, 0], [1, 2]])).tolist() == [3.5, 3.0, 4.0, 0.0]  # node 3 is alone
    # repeats, the reverse and a loop change nothing
    more = np.array([[0, 0, 1, 2, 0, 1], [1, 2, 0, 0, 1, 1]])
    assert neighbour_pattern(x, more).tolist() == [3.5, 3.0, 4.0, 0.0]
    # only the edges that leave a node
    assert neighbour_pattern(x, np.array([[0, 0], [1, 2]]), undirected=False).tolist() == [3.5, 0.0, 0.0, 0.0]
    assert neighbour_pattern(x + 1, np.array([[0, 0], [1, 2]]), "cos").tolist() == [4.5, 4.0, 5.0, 0.0]


def test_pattern_moves_with_the_nodes() -> None:
    edges, x = edges_of(40, 100, 3), np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    order = np.random.default_rng(4).permutation(40)
    place = np.argsort(order)
    np.testing.assert_allclose(neighbour_pattern(x[order], place[edges]), neighbour_pattern(x, edges)[order], rtol=1e-6)


def test_standard_is_over_the_training_nodes() -> None:
    z = np.array([1.0, 3.0, 100.0, 5.0])
    assert standard(z, np.array([0, 1, 3])) == (3.0, 2.0)
    assert standard(np.ones(4), np.arange(4))[1] == 0
    with pytest.raises(ValueError, match="2 or more"):
        standard(z, np.array([1]))


def draw(n: int = 20, classes: int = 4, K: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=g, dtype=torch.float64) * 2
    y = torch.randint(classes, (n,), generator=g)
    rho = torch.softmax(torch.randn(n, K, generator=g, dtype=torch.float64) * 2, 1)
    return logits, y, rho


def risks(logits: torch.Tensor, y: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
    loss = F.cross_entropy(logits, y, reduction="none")
    return torch.stack([(rho[:, k] * loss).sum() / rho[:, k].sum() for k in range(rho.shape[1])])


def test_environment_net() -> None:
    z = torch.randn(50)
    before = torch.get_rng_state()
    net, again = (EnvironmentNet(4, 16, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    rho = net(z)
    assert rho.shape == (50, 4) and torch.allclose(rho.sum(1), torch.ones(50)) and torch.equal(rho, again(z))
    assert torch.allclose(net(torch.zeros(1)), torch.full((1, 4), 0.25))  # zero biases: uniform at the mean pattern
    assert all(float(w.detach().abs().max()) <= (6 / sum(w.shape)) ** 0.5 for w in (net.first.weight, net.second.weight))
    with pytest.raises(ValueError, match="environments"):
        EnvironmentNet(0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), K=st.integers(1, 5))
def test_irm_is_the_squared_derivative_of_a_scale(seed: int, K: int) -> None:
    logits, y, rho = draw(K=K, seed=seed)
    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    found = [torch.autograd.grad(r, s, retain_graph=True)[0] for r in risks(s * logits, y, rho)]
    wanted = sum(float(g) ** 2 for g in found)
    assert float(irm_penalty(logits, y, rho)) == pytest.approx(wanted, abs=1e-10)


def test_gradients_of_the_penalties() -> None:
    """By finite differences, in the logits and in the environments."""
    logits, y, rho = draw(n=6)
    own = torch.stack([draw(n=6, seed=s)[0] for s in (1, 2, 3)])
    for t in (logits, rho, own):
        t.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a, r: irm_penalty(a, y, r), (logits, rho))
    assert torch.autograd.gradcheck(lambda a, r: official_penalty(a, y, r), (logits, rho))
    assert torch.autograd.gradcheck(lambda a, o, r: gap_penalty(a, o, y, r), (logits, own, rho))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999))
def test_the_official_form_is_a_sum_of_squared_risks(seed: int) -> None:
    logits, y, rho = draw(seed=seed)
    n = len(y)
    s = torch.ones((), dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, 1)
    scaled = [(rho[:, k] * F.nll_loss(s * log_p, y, reduction="none")).sum() / n for k in range(rho.shape[1])]
    derivative = torch.stack([torch.autograd.grad(r, s, retain_graph=True)[0] for r in scaled])
    risk = torch.stack(scaled).detach()
    assert torch.allclose(derivative, risk, atol=1e-12)  # d/ds NLL(s log p) = NLL
    official = float(official_penalty(logits, y, rho))
    assert official == pytest.approx(float(risk.square().sum()), abs=1e-12)
    # equal risks in all environments do not make it 0, and it is neither of the penalties
    alike = torch.full_like(rho, 1 / rho.shape[1])
    assert float(official_penalty(logits, y, alike)) == pytest.approx(float(F.cross_entropy(logits, y)) ** 2 / rho.shape[1])
    assert abs(official - float(irm_penalty(logits, y, rho))) > 1e-6
    own = logits.expand(rho.shape[1], *logits.shape)
    assert float(gap_penalty(logits, own, y, rho)) == pytest.approx(0, abs=1e-12)


def test_the_official_form_is_largest_with_one_environment() -> None:
    logits, y, rho = draw(K=4)
    one = torch.zeros_like(rho)
    one[:, 0] = 1
    assert float(official_penalty(logits, y, one)) == pytest.approx(float(F.cross_entropy(logits, y)) ** 2)
    for seed in range(20):
        other = draw(K=4, seed=seed)[2]
        assert float(official_penalty(logits, y, other)) < float(official_penalty(logits, y, one))


def test_calibrated_logits_have_no_irm_penalty() -> None:
    """Where the logits are the log odds in every environment, no rescaling helps any of them."""
    y = torch.tensor([0] * 8 + [1] * 2 + [1] * 8 + [0] * 2)  # right in four of five, in both halves
    said = torch.tensor([0] * 10 + [1] * 10)
    logits = torch.log(torch.where(F.one_hot(said, 2).bool(), 0.8, 0.2)).double()
    rho = torch.zeros(20, 2, dtype=torch.float64)
    rho[:10, 0] = rho[10:, 1] = 1
    assert float(irm_penalty(logits, y, rho)) < 1e-14 < 1e-3 < float(irm_penalty(3 * logits, y, rho))


def test_empty_environments_are_left_out() -> None:
    logits, y, rho = draw(K=2)
    padded = torch.cat([rho, torch.full((len(y), 1), 1e-9, dtype=torch.float64)], 1)
    for penalty in (irm_penalty,):
        assert torch.equal(penalty(logits, y, padded), penalty(logits, y, rho))
    assert len(environment_means(logits[:, 0], padded)) == 2
    own = torch.stack([draw(seed=s)[0] for s in (1, 2)])
    assert torch.equal(gap_penalty(logits, torch.cat([own, own[:1]]), y, padded), gap_penalty(logits, own, y, rho))


def test_gap_after_convex_heads_converged() -> None:
    """Linear heads on fixed states: each own head is at least as good as the shared one; none, in one uniform environment."""
    g = torch.Generator().manual_seed(0)
    h = torch.randn(60, 3, generator=g, dtype=torch.float64)
    y = (h[:, 0] + torch.randn(60, generator=g, dtype=torch.float64) > 0).long()
    rho = torch.stack([h[:, 1].sigmoid(), 1 - h[:, 1].sigmoid()], 1)

    def best(weights: torch.Tensor) -> torch.Tensor:
        W = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
        solver = torch.optim.LBFGS([W], max_iter=60, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe")

        def closure() -> torch.Tensor:
            solver.zero_grad()
            loss = (weights * F.cross_entropy(h @ W, y, reduction="none")).sum() / weights.sum()
            loss.backward()
            return loss

        solver.step(closure)
        return (h @ W).detach()

    shared = best(torch.ones(60, dtype=torch.float64))
    own = torch.stack([best(rho[:, k]) for k in range(2)])
    gap = float(gap_penalty(shared, own, y, rho))
    assert gap >= -1e-6 and gap > 1e-4  # h_1 parts the environments, so their best heads differ
    uniform = torch.full((60, 2), 0.5, dtype=torch.float64)
    assert float(gap_penalty(shared, torch.stack([shared, shared]), y, uniform)) == 0
    assert abs(float(gap_penalty(shared, torch.stack([best(uniform[:, k]) for k in range(2)]), y, uniform))) < 1e-6
    assert float(gap_penalty(torch.zeros_like(shared), own, y, rho)) > gap


def test_head_losses_are_one_head_after_another() -> None:
    _, y, _ = draw()
    own = torch.stack([draw(seed=s)[0] for s in range(3)])
    for k in range(3):
        assert torch.equal(head_losses(own, y)[:, k], F.cross_entropy(own[k], y, reduction="none"))


def test_what_the_head_reads_is_found() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.unused = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)

        def head(self, h: torch.Tensor, graph: str) -> torch.Tensor:
            return self.second(h)

    net = Two()
    assert head_parameters(net, torch.randn(5, 4), ("graph",)) == {"second.weight", "second.bias"}
    assert net.training and all(p.grad is None for p in net.parameters())


def test_errors() -> None:
    x, edges = np.ones((4, 2)), np.array([[0, 1], [1, 2]])
    bad = x.copy()
    bad[2, 1] = np.nan
    with pytest.raises(ValueError, match="row 2"):
        neighbour_pattern(bad, edges)
    with pytest.raises(ValueError, match="no node has a neighbour"):
        neighbour_pattern(x, np.array([[1], [1]]))
    with pytest.raises(ValueError, match="similarity"):
        neighbour_pattern(x, edges, "simrank")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[n, F\]"):
        neighbour_pattern(np.ones(4), edges)
