"""Propagation: products against dense algebra, gradients, normalisations, threads, caches, errors."""

import gc
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticework.layers import propagation
from latticework.layers.propagation import (
    SparseOperator,
    adjacency,
    balanced_chunks,
    hop_stack,
    normalise,
    normalised_adjacency,
)


def random_matrix(rows: int, columns: int, p: float, seed: int) -> sp.csr_array:
    rng = np.random.default_rng(seed)
    return sp.csr_array((rng.random((rows, columns)) < p) * rng.standard_normal((rows, columns)))


def random_edges(n: int, m: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, n, (2, m)))


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


# -- the product ------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 30),
    columns=st.integers(1, 30),
    width=st.integers(0, 70),
    double=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_product_equals_the_dense_one(seed: int, rows: int, columns: int, width: int, double: bool) -> None:
    matrix = random_matrix(rows, columns, 0.2, seed)
    X = np.random.default_rng(seed).standard_normal((columns, width))
    dtype, tolerance = (np.float64, 1e-12) if double else (np.float32, 1e-4)
    S = SparseOperator.from_scipy(matrix, dtype)
    product = S @ X.astype(dtype)
    assert product.dtype == dtype and product.shape == (rows, width)
    assert np.allclose(product, matrix.toarray() @ X, atol=tolerance)


def test_every_width_and_block_of_columns() -> None:
    """Each width takes its own path through the kernel's blocks; a column's sum doesn't depend on its neighbours."""
    matrix = random_matrix(300, 200, 0.1, 3)
    whole = np.random.default_rng(1).standard_normal((200, 300)).astype(np.float32)
    S = SparseOperator.from_scipy(matrix, np.float32)
    exact = matrix.toarray() @ whole.astype(np.float64)
    for width in (1, 3, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 128, 130, 257, 300):
        product = S @ whole[:, :width]
        assert np.abs(product - exact[:, :width]).max() < 3e-5
        assert np.array_equal(product, (S @ whole)[:, :width])


def test_trailing_dimensions_and_vectors() -> None:
    S = SparseOperator.from_scipy(random_matrix(6, 5, 0.5, 1))
    X = draw(5, 2, 3)
    dense = torch.from_numpy(S.to_scipy().toarray())
    assert torch.allclose(S @ X, torch.einsum("ij,jab->iab", dense, X))
    assert torch.allclose(S @ X[:, 0, 0], dense @ X[:, 0, 0])
    assert (S @ X[:, :0]).shape == (6, 0, 3)


def test_strided_input_and_given_output() -> None:
    S = SparseOperator.from_scipy(random_matrix(6, 5, 0.5, 1))
    X = draw(4, 5).T
    assert torch.allclose(S @ X, torch.from_numpy(S.to_scipy().toarray()) @ X)
    out = np.full((6, 4), np.nan)
    assert S.multiply(X.numpy(), out=out) is out and np.allclose(out, S.to_scipy() @ X.numpy())


def test_entries_stored_twice_count_twice() -> None:
    S = SparseOperator(np.array([0, 3]), np.array([1, 1, 0]), np.array([1.0, 2.0, 5.0]), (1, 2))
    assert np.array_equal(S @ np.array([[1.0], [10.0]]), [[35.0]])


def test_half_precision_is_summed_in_float32() -> None:
    S = SparseOperator.from_scipy(random_matrix(20, 20, 0.5, 2), np.float32)
    X = draw(20, 4, dtype=torch.float32).half()
    assert torch.equal(S @ X, (S @ X.float()).half()) and (S @ X.bfloat16()).dtype == torch.bfloat16


def test_gradients_and_second_gradients() -> None:
    S = SparseOperator.from_scipy(random_matrix(7, 5, 0.4, 3))
    X = draw(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: S @ x, (X,))
    assert torch.autograd.gradgradcheck(lambda x: (S @ x) ** 3, (X,))
    (S @ X).sum().backward()
    assert X.grad is not None
    assert torch.allclose(X.grad, torch.from_numpy(S.to_scipy().toarray()).T.sum(1, keepdim=True).expand(5, 3))


def test_transpose_is_kept_and_undone() -> None:
    S = SparseOperator.from_scipy(random_matrix(7, 5, 0.4, 3))
    assert np.array_equal(S.T.to_scipy().toarray(), S.to_scipy().toarray().T)
    assert S.T is S.T and S.T.T is S
    square = random_matrix(6, 6, 0.3, 1)
    symmetric = SparseOperator.from_scipy(square + square.T)
    assert symmetric.T is symmetric
    assert SparseOperator.from_scipy(square).T is not None and SparseOperator.from_scipy(square).T.T is not None


def test_a_transpose_outlives_its_origin() -> None:
    turned = SparseOperator.from_scipy(random_matrix(7, 5, 0.4, 3)).T
    gc.collect()
    assert np.array_equal(turned.T.to_scipy().toarray(), random_matrix(7, 5, 0.4, 3).toarray())


def test_casts_are_kept_and_other_values_share_the_pattern() -> None:
    S = SparseOperator.from_scipy(random_matrix(7, 5, 0.4, 3))
    assert S.astype(torch.float32) is S.astype(torch.float32) and S.astype(torch.float64) is S
    doubled = S.with_values(2 * S.values)
    assert np.array_equal(doubled.to_scipy().toarray(), 2 * S.to_scipy().toarray()) and doubled.bounds is S.bounds
    assert np.shares_memory(S.to_scipy().indices, S.indices) and np.shares_memory(S.to_scipy().data, S.values)


def test_torch_form() -> None:
    S = SparseOperator.from_scipy(random_matrix(7, 5, 0.4, 3))
    assert torch.equal(S.to_torch().to_dense(), torch.from_numpy(S.to_scipy().toarray())) and S.to_torch() is S.to_torch()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_other_devices_give_the_same_values_and_gradients() -> None:
    S = SparseOperator.from_scipy(random_matrix(40, 30, 0.2, 3))
    X = draw(30, 4)
    here, there = X.clone().requires_grad_(), X.cuda().requires_grad_()
    (S @ here).square().sum().backward()
    (S @ there).square().sum().backward()
    assert torch.allclose((S @ there).cpu(), S @ here) and torch.allclose(there.grad.cpu(), here.grad)


THREADS = """
import hashlib, numpy as np, scipy.sparse as sp, torch
from latticework.layers.propagation import SparseOperator
rng = np.random.default_rng(0)
degree = np.minimum((rng.pareto(1.0, 4000) * 3).astype(int), 3999)
A = sp.csr_array((rng.standard_normal(degree.sum()), rng.integers(0, 4000, degree.sum()), np.r_[0, degree.cumsum()]), shape=(4000, 4000))
for threads in (1, 2):
    torch.set_num_threads(threads)
    for dtype in (np.float32, np.float64):
        for width in (1, 7, 64, 100):
            X = np.random.default_rng(width).standard_normal((4000, width)).astype(dtype)
            print(threads, hashlib.sha256((SparseOperator.from_scipy(A, dtype) @ X).tobytes()).hexdigest())
"""


def test_same_bytes_for_any_number_of_threads() -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    done = subprocess.run([sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    one, two = ([digest for threads, digest in lines if threads == wanted] for wanted in "12")
    assert len(one) == 8 and one == two


@given(st.lists(st.integers(0, 50), min_size=0, max_size=60), st.integers(1, 20))
@settings(deadline=None, max_examples=80)
def test_chunks_cover_the_rows_and_share_the_work(lengths: list[int], chunks: int) -> None:
    indptr = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    bounds = balanced_chunks(indptr, chunks)
    assert bounds[0] == 0 and bounds[-1] == len(lengths) and bool((np.diff(bounds) > 0).all()) and len(bounds) <= chunks + 1
    if lengths:
        work = np.array(lengths) + 2
        heaviest = max(work[a:b].sum() for a, b in itertools.pairwise(bounds))
        assert heaviest <= work.sum() / min(chunks, len(lengths)) + work.max()


# -- adjacency and normalisation ----------------------------------------------------------------------------------------


def test_adjacency_of_an_edge_list() -> None:
    edges, weight = np.array([[0, 0, 1, 2, 0], [1, 2, 2, 2, 1]]), np.array([1.0, 2, 3, 4, 5])
    rows = [[0, 6, 2], [0, 0, 3], [0, 0, 4]]
    assert np.array_equal(adjacency(edges, 3, weight, rows="source").toarray(), rows)
    assert np.array_equal(adjacency(edges, 3, weight).toarray(), np.transpose(rows))
    both = adjacency(edges, 3, weight, undirected=True, self_loops=True).toarray()
    assert np.array_equal(both, [[1, 6, 2], [6, 1, 3], [2, 3, 4]])
    assert np.array_equal(adjacency(torch.from_numpy(edges), 4, self_loops=True).toarray()[3], [0, 0, 0, 1])
    zero = adjacency(np.array([[0], [0]]), 2, np.array([0.0]), self_loops=True).toarray()
    assert np.array_equal(zero, [[0, 0], [0, 1]])
    assert adjacency(np.empty((2, 0)), 3).shape == (3, 3)


@given(seed=st.integers(0, 10_000), n=st.integers(1, 25))
@settings(deadline=None, max_examples=40)
def test_normalisations(seed: int, n: int) -> None:
    full = np.abs(random_matrix(n, n, 0.2, seed).toarray())
    rows, columns = full.sum(1), full.sum(0)
    inverse = [np.divide(1, s, out=np.zeros(n), where=s > 0) for s in (rows, columns)]
    assert np.allclose(normalise(full, "row").toarray(), full * inverse[0][:, None], atol=1e-14)
    assert np.allclose(normalise(full, "column").toarray(), full * inverse[1][None, :], atol=1e-14)
    root = np.sqrt(inverse[0])
    assert np.allclose(normalise(full).toarray(), full * np.outer(root, root), atol=1e-13)
    assert np.array_equal(normalise(full, "none").toarray(), full)
    undirected = full + full.T
    made = normalise(undirected).toarray()
    assert np.array_equal(made, made.T)  # bit for bit: the operator is then its own transpose
    values = np.linalg.eigvalsh(made)
    assert values.min() > -1 - 1e-9 and values.max() < 1 + 1e-9


def test_operator_of_edges_agrees_with_the_field_s_library() -> None:
    pyg = pytest.importorskip("torch_geometric.nn.conv.gcn_conv")
    edges = random_edges(30, 90, 1).unique(dim=1)
    edges = edges[:, edges[0] != edges[1]]
    weight = torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(1)) + 0.1
    index, values = pyg.gcn_norm(edges, weight, 30)
    expected = torch.zeros(30, 30).index_put_((index[1], index[0]), values, accumulate=True)
    # gcn_norm sums by destination, and so do the rows here
    found = normalised_adjacency(edges, 30, weight)
    assert torch.allclose(found.to_torch().to_dense(), expected, atol=1e-6)


def test_from_edges() -> None:
    edges = random_edges(10, 30, 2)
    S = SparseOperator.from_edges(edges, None, 10)
    X = draw(10, 3, dtype=torch.float32)
    expected = torch.zeros(10, 3).index_add_(0, edges[1], X[edges[0]])
    assert torch.allclose(S @ X, expected, atol=1e-5)
    turned = SparseOperator.from_edges(edges, None, 10, rows="source")
    assert np.array_equal(turned.to_scipy().toarray(), S.to_scipy().toarray().T)


# -- caches -----------------------------------------------------------------------------------------------------------


class Owner:
    pass


def test_operators_are_kept_with_their_edges() -> None:
    edges = random_edges(10, 30, 2)
    first = normalised_adjacency(edges, 10)
    assert normalised_adjacency(edges, 10) is first
    assert normalised_adjacency(edges, 10, kind="row") is not first
    assert normalised_adjacency(edges, 10, dtype=torch.float64) is not first
    weight = torch.ones(30)
    heavy = normalised_adjacency(edges, 10, weight)
    assert heavy is not first and normalised_adjacency(edges, 10, weight) is heavy
    weight *= 2
    weight[0] = 7
    assert normalised_adjacency(edges, 10, weight) is not heavy
    edges[0, 0] = (edges[0, 0] + 1) % 10
    changed = normalised_adjacency(edges, 10)
    assert changed is not first
    fresh = normalised_adjacency(edges.clone(), 10)
    assert np.array_equal(changed.to_scipy().toarray(), fresh.to_scipy().toarray())


def test_operators_are_forgotten_with_their_owner() -> None:
    gc.collect()
    before, owner = len(propagation._cache), Owner()
    edges = random_edges(10, 30, 3)
    first = normalised_adjacency(edges, 10, owner=owner)
    assert normalised_adjacency(edges.clone(), 10, owner=owner) is first
    assert normalised_adjacency(edges, 10, owner=Owner()) is not first
    assert len(propagation._cache) == before + 1
    del owner
    gc.collect()
    assert len(propagation._cache) == before


# -- hops -------------------------------------------------------------------------------------------------------------


def test_hops_are_powers() -> None:
    matrix = random_matrix(12, 12, 0.3, 4)
    Z, S = draw(12, 2), SparseOperator.from_scipy(matrix)
    for form in (S, torch.from_numpy(matrix.toarray())):
        hops = list(hop_stack(form, Z, 5))
        assert len(hops) == 6 and hops[0] is Z
        for k, P in enumerate(hops):
            assert torch.allclose(P, torch.from_numpy(np.linalg.matrix_power(matrix.toarray(), k)) @ Z, atol=1e-9)
    assert len(list(hop_stack(S, Z, 0))) == 1


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors() -> None:
    indptr, indices, values = np.array([0, 1, 2]), np.array([0, 1]), np.ones(2)
    for broken, message in (
        ((np.array([0, 1]), indices, values, (2, 2)), "indptr"),
        ((np.array([0, 2, 1]), indices[:1], values[:1], (2, 2)), "decrease"),
        ((indptr, indices[:1], values, (2, 2)), "announces"),
        ((indptr, np.array([0, 2]), values, (2, 2)), "column index 2"),
        ((indptr, indices, values, (2, 2**31)), "shape"),
    ):
        with pytest.raises(ValueError, match=message):
            SparseOperator(*broken)
    with pytest.raises(TypeError, match="values"):
        SparseOperator(indptr, indices, np.ones(2, int), (2, 2))
    S = SparseOperator(indptr, indices, values, (2, 2))
    with pytest.raises(ValueError, match="3 rows"):
        S @ torch.ones(3, 1)
    with pytest.raises(TypeError, match="float"):
        S @ torch.ones(2, 1, dtype=torch.int64)
    with pytest.raises(TypeError, match="float"):
        S @ np.ones((2, 1), int)
    X = np.ones((2, 3))
    with pytest.raises(ValueError, match="share"):
        S.multiply(X, out=X)
    with pytest.raises(ValueError, match="C-contiguous"):
        S.multiply(X, out=np.ones((3, 2)).T)
    with pytest.raises(TypeError, match="float32"):
        S.multiply(X.astype(np.float32))
    with pytest.raises(ValueError, match="hops"):
        hop_stack(S, torch.ones(2, 1), -1)
    with pytest.raises(ValueError, match="applied"):
        hop_stack(S, torch.ones(3, 1), 1)
    with pytest.raises(ValueError, match="edge 1 joins 2 and 9"):
        adjacency(np.array([[0, 2], [1, 9]]), 3)
    with pytest.raises(ValueError, match="edge 0"):
        adjacency(np.array([[-1], [1]]), 3)
    with pytest.raises(ValueError, match=r"\[2, m\]"):
        adjacency(np.zeros((3, 2), int), 3)
    with pytest.raises(TypeError, match="integers"):
        adjacency(np.zeros((2, 2)), 3)
    with pytest.raises(ValueError, match="weight of edge 1"):
        adjacency(np.array([[0, 1], [1, 0]]), 2, np.array([1, np.nan]))
    with pytest.raises(ValueError, match="2 edges"):
        adjacency(np.array([[0, 1], [1, 0]]), 2, np.ones(3))
    with pytest.raises(ValueError, match=">= 0"):
        normalise(np.array([[0, -1.0], [1, 0]]))
    with pytest.raises(ValueError, match="square"):
        normalise(np.ones((2, 3)))
    with pytest.raises(ValueError, match="kind"):
        normalise(np.ones((2, 2)), "both")  # type: ignore[arg-type]


def test_a_first_parallel_kernel_leaves_torchs_threads_alone() -> None:
    """In a fresh process: numba starts its threads at the first kernel, and torch must go on with the number it had."""
    import subprocess
    import sys

    program = (
        "import torch, numpy as np, scipy.sparse as sp\n"
        "from latticework.layers.propagation import SparseOperator\n"
        "torch.set_num_threads(1)\n"
        "S = SparseOperator.from_scipy(sp.random_array((2000, 2000), density=0.01, format='csr', dtype=np.float32), np.float32)\n"
        "S @ torch.ones(2000, 8)\n"
        "print(torch.get_num_threads())\n"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "1", said.stdout
