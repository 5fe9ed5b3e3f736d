"""FastRP: dense oracles, laws of the projection, determinism, edge cases, and BlogCatalog."""

import os
import subprocess
import sys
import time
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers.propagation import SparseOperator
from latticework.nodes.fastrp import fastrp, merge_orders, orders, projection_matrix, transition

DATA = Path(os.environ.get("LATTICEWORK_DATA", "/nonexistent"))


def random_graph(n: int, p: float, seed: int, directed: bool = False, weighted: bool = True) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    full = (rng.random((n, n)) < p) * (rng.uniform(0.2, 3, (n, n)) if weighted else 1.0)
    if not directed:
        full = np.triu(full, 1)
        full = full + full.T
    return sp.csr_array(full)


def explicit(A: sp.csr_array, beta: float, power: int) -> np.ndarray:
    """``P^t L`` computed densely from the definition."""
    full = A.toarray()
    rows, into = full.sum(1), full.sum(0)
    P = np.divide(full, rows[:, None], out=np.zeros_like(full), where=rows[:, None] > 0)
    scale = np.array([(d / full.sum()) ** beta if d > 0 else 0.0 for d in into])
    return np.linalg.matrix_power(P, power) * scale[None, :]


def units(U: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(U, axis=1, keepdims=True)
    return np.divide(U, norms, out=np.zeros_like(U), where=norms > 0)


def dense(R: sp.csr_array | np.ndarray) -> np.ndarray:
    return R.toarray() if sp.issparse(R) else R


def fit(A: sp.csr_array, dim: int, weights: tuple[float, ...], **how: object) -> np.ndarray:
    how = {"normalise": False, "standardise": False, "dtype": np.float64, **how}
    return fastrp(A, dim, weights, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("projection", ["sparse", "gaussian"])
@pytest.mark.parametrize("density", ["auto", 1.0])
@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
def test_iteration_equals_the_explicit_matrix(projection: str, density: float | str, directed: bool, normalise: bool) -> None:
    A = random_graph(60, 0.08, 4, directed)
    weights, beta = (0.5, 0.0, 1.0, -2.0), -0.4
    R = dense(projection_matrix(60, 16, density, 7, projection, dtype=np.float64))  # type: ignore[arg-type]
    each = [explicit(A, beta, t) @ R for t in range(1, 5)]
    if normalise:
        each = [units(U) for U in each]
    how = {"beta": beta, "projection": projection, "density": density, "seed": 7, "normalise": normalise}
    total = sum(a * U for a, U in zip(weights, each, strict=True))
    assert np.abs(fit(A, 16, weights, **how) - total).max() < 1e-10
    side = np.hstack([a * U for a, U in zip(weights, each, strict=True) if a])
    found = fit(A, 16, weights, merge="concat", **how)
    assert found.shape == (60, 48) and np.abs(found - side).max() < 1e-10
    deviation = total.std(0)
    standard = np.divide(total - total.mean(0), deviation, out=np.zeros_like(total), where=deviation > 0)
    assert np.abs(fit(A, 16, weights, standardise=True, **how) - standard).max() < 1e-10


def test_worked_example_of_a_path() -> None:
    A = sp.csr_array(np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]], float))
    assert np.allclose(explicit(A, 0, 2), [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])
    assert np.allclose(explicit(A, -1, 2), [[2, 0, 2], [0, 2, 0], [2, 0, 2]])
    assert np.allclose(transition(A, -1.0)[1], [4, 2, 4])
    R = projection_matrix(3, 8, 1.0, 5, dtype=np.float64).toarray()
    U = fit(A, 8, (0, 1), beta=0, seed=5, density=1.0)
    assert np.array_equal(U[0], U[2]) and np.allclose(U[1], R[1]) and np.allclose(U[0], (R[0] + R[2]) / 2)
    U = fit(A, 8, (0, 1), beta=-1, seed=5, density=1.0)
    assert np.allclose(U, np.array([[2, 0, 2], [0, 2, 0], [2, 0, 2]]) @ R)


@pytest.mark.parametrize("density", ["auto", 1 / 3, 1.0])
def test_law_of_the_sparse_projection(density: float | str) -> None:
    n, dim = 4000, 200
    R = projection_matrix(n, dim, density, 11, dtype=np.float64)  # type: ignore[arg-type]
    share = 1 / np.sqrt(n) if density == "auto" else float(density)
    entries = n * dim
    assert abs(R.nnz / entries - share) <= 5 * np.sqrt(share * (1 - share) / entries)
    assert abs((R.data > 0).mean() - 0.5) <= 5 * 0.5 / np.sqrt(R.nnz)
    assert set(np.unique(R.data)) == {-np.sqrt(1 / share), np.sqrt(1 / share)}
    assert R.indices.dtype == np.int32
    # E[R R^T] = dim I, and neither rows nor columns go together
    assert (R.multiply(R)).sum() / entries == pytest.approx(1, abs=5 * np.sqrt((1 / share - 1 + 1e-9) / entries))
    for gram, count in ((R[:300] @ R[:300].T, dim), (R.T @ R, n)):
        off = gram.toarray() / count
        np.fill_diagonal(off, 0)
        assert np.sqrt((off**2).mean() * count) == pytest.approx(1, abs=0.15)


def test_law_of_the_gaussian_projection() -> None:
    R = projection_matrix(2000, 100, seed=2, kind="gaussian", dtype=np.float64)
    values = np.sort(R.ravel())
    assert abs(values.mean()) < 5 / np.sqrt(values.size) and values.var() == pytest.approx(1, abs=0.02)
    from scipy.stats import kstest

    assert kstest(values[::10], "norm").pvalue > 1e-4


@pytest.mark.parametrize("kind", ["sparse", "gaussian"])
def test_projection_is_keyed_by_node_and_column(kind: str) -> None:
    whole = dense(projection_matrix(50, 40, 0.3, 3, kind))  # type: ignore[arg-type]
    parts = [dense(projection_matrix(50, 40, 0.3, 3, kind, columns=(a, a + 8))) for a in range(0, 40, 8)]  # type: ignore[arg-type]
    assert np.array_equal(whole, np.hstack(parts))
    assert np.array_equal(whole, dense(projection_matrix(90, 40, 0.3, 3, kind))[:50])  # type: ignore[arg-type]
    ids = np.array([4, 49, 0, 7])
    assert np.array_equal(whole[ids], dense(projection_matrix(4, 40, 0.3, 3, kind, ids=ids)))  # type: ignore[arg-type]
    assert not np.array_equal(whole, dense(projection_matrix(50, 40, 0.3, 4, kind)))  # type: ignore[arg-type]
    # a neighbouring seed isn't the same stream shifted by a node
    assert not np.array_equal(whole[1:], dense(projection_matrix(50, 40, 0.3, 4, kind))[:-1])  # type: ignore[arg-type]


def test_errors_shrink_as_johnson_and_lindenstrauss_say() -> None:
    """20 seeds of the projection; |u_i.u_j / dim - M_i.M_j| falls by sqrt(1024 / 64) = 4."""
    A = random_graph(60, 0.1, 1)
    weights = (1.0, 0.5, 0.25)
    M = sum(a * explicit(A, -0.5, t + 1) for t, a in enumerate(weights))
    errors = {
        dim: np.mean(
            [np.abs(U @ U.T / dim - M @ M.T).mean() for U in (fit(A, dim, weights, beta=-0.5, seed=s) for s in range(20))]
        )
        for dim in (64, 1024)
    }
    assert 3 <= errors[64] / errors[1024] <= 5.5


def test_one_order_alone_is_a_power_of_the_walk() -> None:
    A = random_graph(40, 0.15, 2)
    P, R = explicit(A, 0, 1), projection_matrix(40, 8, seed=1, dtype=np.float64).toarray()
    for t in (1, 2, 5):
        U = fit(A, 8, (0.0,) * (t - 1) + (1.0,), beta=0, seed=1)
        assert np.abs(U - np.linalg.matrix_power(P, t) @ R).max() < 1e-12


def test_beta_minus_one_cancels_the_limit() -> None:
    """All rows tend to (1/2m) sum_j d_j L_j R_j = sum_j R_j: with L = 2m / d the degrees drop out."""
    A = random_graph(30, 0.3, 3)
    full = A.toarray()
    degrees = full.sum(1)
    inner = full / np.sqrt(np.outer(degrees, degrees))
    second = np.sort(np.abs(np.linalg.eigvalsh(inner)))[-2]
    R = projection_matrix(30, 8, 1.0, 1, dtype=np.float64).toarray()
    P, scale = transition(A, -1.0, np.float64)
    limit = R.sum(0)
    reach = np.abs(scale[:, None] * R).sum() * np.sqrt(degrees.max() / degrees.min())
    for t, U in enumerate(orders(P, scale, sp.csr_array(R), 60), start=1):
        assert np.abs(U - limit).max() <= reach * second**t + 1e-9
    assert np.abs(U - U[0]).max() < 1e-6


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=15)
def test_permuting_nodes_and_rows_of_R_permutes_the_output(seed: int) -> None:
    rng = np.random.default_rng(seed)
    A, order = random_graph(30, 0.2, seed, directed=bool(seed % 2)), rng.permutation(30)
    turned = sp.csr_array(A[order][:, order])
    for normalise in (False, True):
        plain = fit(A, 12, (1, 2, 3), density=0.3, normalise=normalise)
        assert np.allclose(fit(turned, 12, (1, 2, 3), density=0.3, normalise=normalise, ids=order), plain[order], atol=1e-12)


def test_permutation_is_exact_where_sums_are() -> None:
    # on a cycle every number is a sum of two halves, so no rounding hides behind the order of a sum
    n = 16
    ring = sp.coo_array((np.ones(n), (np.arange(n), (np.arange(n) + 1) % n)), shape=(n, n)).tocsr()
    A, order = sp.csr_array(ring + ring.T), np.random.default_rng(0).permutation(n)
    turned = sp.csr_array(A[order][:, order])
    assert np.array_equal(fit(turned, 8, (1, 2), density=1.0, ids=order), fit(A, 8, (1, 2), density=1.0)[order])


BYTES = """
import hashlib, numpy as np, scipy.sparse as sp, torch
from latticework.nodes.fastrp import fastrp
rng = np.random.default_rng(0)
A = sp.csr_array(sp.random_array((3000, 3000), density=0.01, rng=rng, format="csr", dtype=np.float32))
for threads in (1, 2):
    torch.set_num_threads(threads)
    for how in ({}, {"projection": "gaussian", "merge": "concat"}, {"density": 1.0}):
        print(threads, hashlib.sha256(fastrp(A, 48, seed=9, **how).tobytes()).hexdigest())
"""


def test_same_bytes_for_one_and_two_threads() -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", BYTES], env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    one, two = ([digest for threads, digest in lines if threads == wanted] for wanted in "12")
    assert len(one) == 3 and one == two and len(set(one)) == 3


def test_nodes_without_edges_get_zero_rows() -> None:
    A = random_graph(12, 0.4, 1).tolil()
    A[4, :] = 0
    A[:, 4] = 0
    A = sp.csr_array(A)
    for beta in (-1.0, -0.5, 0.0, 1.0):
        U = fit(A, 8, (1, 1), beta=beta, normalise=True)
        assert np.isfinite(U).all() and not U[4].any() and np.abs(U).sum(1).astype(bool).sum() == 11
        assert np.isfinite(fastrp(A, 8, beta=beta)).all()
    empty = fastrp(sp.csr_array((5, 5)), 4)
    assert empty.shape == (5, 4) and empty.dtype == np.float32 and not empty.any()


def test_directed_graphs_use_out_degrees_for_P_and_in_degrees_for_L() -> None:
    A = sp.csr_array(np.array([[0, 2.0, 0], [0, 0, 1.0], [0, 1.0, 0]]))
    P, scale = transition(A, -1.0, np.float64)
    assert np.array_equal(P.to_scipy().toarray(), [[0, 1, 0], [0, 0, 1], [0, 1, 0]])
    assert np.allclose(scale, [0, 4 / 3, 4])


def test_duplicate_edges_sum_and_loops_stay() -> None:
    row, column = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 0, 0, 2, 0])
    twice = sp.csr_array((np.ones(6), column.astype(np.int32), np.array([0, 2, 4, 6])), shape=(3, 3))
    once = sp.csr_array(sp.coo_array((np.ones(6), (row, column)), shape=(3, 3)))
    assert twice.nnz > once.nnz
    assert np.allclose(fit(twice, 6, (1, 1)), fit(once, 6, (1, 1)))
    assert transition(once)[0].to_scipy().toarray()[2, 2] == 0.5


def test_scale_of_the_weights_of_edges_is_irrelevant_and_types_agree() -> None:
    A = random_graph(30, 0.2, 6)
    assert np.allclose(fit(A, 8, (1, 2)), fit(sp.csr_array(7 * A), 8, (1, 2)), atol=1e-12)
    plain = fastrp(A, 8, seed=1)
    assert plain.dtype == np.float32
    assert np.array_equal(plain, fastrp(SparseOperator.from_scipy(A), 8, seed=1))
    assert np.allclose(plain, fastrp(A, 8, seed=1, dtype=np.float64), atol=1e-3)
    ones = random_graph(30, 0.2, 6, weighted=False)
    assert np.array_equal(fastrp(ones, 8), fastrp(ones.astype(bool), 8))
    assert np.array_equal(fastrp(ones, 8), fastrp(ones.astype(np.int64), 8))


def test_kept_orders_can_be_merged_again() -> None:
    A = random_graph(40, 0.1, 8)
    P, scale = transition(A)
    R = projection_matrix(40, 8, seed=2)
    kept = [U.copy() for U in orders(P, scale, R, 4)]
    for weights in ((0, 0, 1, 6.67), (1, 0, 0, 2)):
        before = [U.copy() for U in kept]
        assert np.array_equal(merge_orders(kept, weights), fastrp(A, 8, weights, seed=2))
        assert all(np.array_equal(a, b) for a, b in zip(before, kept, strict=True))
    for weights in ((1.0,), (0, 1, 1), (1,) * 5):
        with pytest.raises(ValueError, match=f"{len(weights)} weights, but"):
            merge_orders(kept, weights)
    gaussian = projection_matrix(40, 8, seed=2, kind="gaussian")
    copy = gaussian.copy()
    list(orders(P, scale, gaussian, 2))
    assert np.array_equal(gaussian, copy)


def test_standardised_columns_and_constant_ones() -> None:
    U = fastrp(random_graph(50, 0.2, 9), 16)
    assert np.allclose(U.mean(0), 0, atol=1e-5) and np.allclose(U.std(0), 1, atol=1e-4)
    constant = np.full((30, 20), 0.1, np.float32)
    constant[:, 3] = np.arange(30)
    merged = merge_orders([constant], [1.0], normalise=False)
    assert not np.delete(merged, 3, axis=1).any() and merged[:, 3].std() == pytest.approx(1)


@pytest.mark.parametrize("how", [{}, {"projection": "gaussian"}, {"density": 1.0}])
def test_peak_memory(how: dict[str, object]) -> None:
    n, dim = 20_000, 64
    rng = np.random.default_rng(0)
    A = sp.csr_array((np.ones(60_000, np.float32), (rng.integers(0, n, 60_000), rng.integers(0, n, 60_000))), shape=(n, n))
    fastrp(A[:50][:, :50], 4, **how)  # type: ignore[arg-type]  # compiled before it is measured
    tracemalloc.start()
    fastrp(A, dim, **how)  # type: ignore[arg-type]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 4 * n * dim * 4 + A.data.nbytes + A.indices.nbytes + A.indptr.nbytes


def test_errors() -> None:
    A = random_graph(10, 0.3, 1)
    with pytest.raises(ValueError, match="square"):
        fastrp(sp.csr_array((3, 4)), 4)
    with pytest.raises(ValueError, match="no nodes"):
        fastrp(sp.csr_array((0, 0)), 4)
    for value in (-1.0, float("nan"), float("inf")):
        bad = sp.csr_array((np.array([1.0, value]), (np.array([0, 2]), np.array([1, 1]))), shape=(3, 3))
        with pytest.raises(ValueError, match="2 -> 1"):
            fastrp(bad, 4)
    with pytest.raises(ValueError, match="real"):
        fastrp(A.astype(complex), 4)
    for weights, message in (((), "empty"), ((0, 0), "all 0"), ((1, float("nan")), "finite")):
        with pytest.raises(ValueError, match=message):
            fastrp(A, 4, weights)
    with pytest.raises(ValueError, match="dim"):
        fastrp(A, 0)
    with pytest.raises(ValueError, match="merge"):
        fastrp(A, 4, merge="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="projection"):
        fastrp(A, 4, projection="dense")  # type: ignore[arg-type]
    for density in (0.0, 1.5, float("nan"), "some"):
        with pytest.raises(ValueError, match="density"):
            fastrp(A, 4, density=density)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="beta"):
        fastrp(A, 4, beta=float("nan"))
    with pytest.warns(UserWarning, match="beta"):
        fastrp(A, 4, beta=-1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastrp(A, 4, beta=-1.0)
    P, scale = transition(A)
    with pytest.raises(ValueError, match="order"):
        orders(P, scale, projection_matrix(10, 4), 0)
    with pytest.raises(ValueError, match="R must be"):
        orders(P, scale, projection_matrix(9, 4), 1)
    with pytest.raises(TypeError, match="float64"):
        orders(P, scale, projection_matrix(10, 4, dtype=np.float64), 1)
    with pytest.raises(ValueError, match="2 weights, but 1"):
        merge_orders([np.ones((3, 2), np.float32)], [1, 1])
    with pytest.raises(ValueError, match="columns"):
        projection_matrix(5, 4, columns=(2, 5))
    with pytest.raises(ValueError, match="ids"):
        projection_matrix(5, 4, ids=np.arange(4))
    with pytest.raises(ValueError, match="float"):
        projection_matrix(5, 4, dtype=np.int32)


def test_blogcatalog() -> None:
    """dim 128, three random 10 % splits (seeds 0 to 2), the rivals on the first of them only. Micro and macro F1, and the time."""
    path = DATA / "blogcatalog" / "blogcatalog.npz"
    if not path.exists():
        pytest.skip("blogcatalog")
    from scipy.sparse.linalg import svds
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score

    with np.load(path) as z:
        edges, shape = z["edge_index"], tuple(z["y_shape"])
        y = sp.csr_array((np.ones(len(z["y_indices"]), np.int8), z["y_indices"], z["y_indptr"]), shape=shape).toarray()
    n = len(y)
    both = np.concatenate([edges, edges[::-1]], axis=1)
    A = sp.csr_array((np.ones(both.shape[1], np.float32), (both[0], both[1])), shape=(n, n))
    assert A.nnz == 667_966
    fastrp(A[:100][:, :100], 8)
    start = time.process_time()
    full = fastrp(A, 128)
    assert time.process_time() - start <= 1.5  # on one core

    def judge(U: np.ndarray, seed: int) -> np.ndarray:
        train = np.zeros(n, bool)
        train[np.random.default_rng(seed).permutation(n)[: n // 10]] = True
        scores = np.full((n - train.sum(), y.shape[1]), -np.inf)
        for c in range(y.shape[1]):
            if y[train, c].any():
                model = LogisticRegression(C=0.1, solver="liblinear").fit(U[train], y[train, c])
                scores[:, c] = model.decision_function(U[~train])
        truth = y[~train]
        # as many labels as a node truly has: the field's convention
        guess = np.argsort(np.argsort(-scores, axis=1), axis=1) < truth.sum(1, keepdims=True)
        return np.array([f1_score(truth, guess, average=how, zero_division=0) for how in ("micro", "macro")])

    each = np.array([judge(full, seed) for seed in range(3)])
    micro, macro = each.mean(0)
    assert micro >= 0.345 and macro >= 0.185
    assert each[0, 0] - judge(fastrp(A, 128, (1.0,)), 0)[0] >= 0.15
    left, values, _ = svds(A.astype(np.float64), k=128, random_state=0)
    svd = left * np.sqrt(values)
    assert each[0, 0] - judge((svd - svd.mean(0)) / svd.std(0), 0)[0] >= 0.05
