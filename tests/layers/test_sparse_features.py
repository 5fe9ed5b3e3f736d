"""Sparse features as scipy's and scikit-learn's: 32-bit indices, whatever they came with."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.cluster import KMeans

from latticework.layers.sparse_features import SparseFeatures, narrow
from latticework.nodes.baselines import fit_logistic


def long_indices(seed: int = 0) -> sp.csr_array:
    x = sp.csr_array(sp.random(40, 12, 0.3, format="csr", random_state=seed, dtype=np.float32))
    return sp.csr_array((x.data, x.indices.astype(np.int64), x.indptr.astype(np.int64)), shape=x.shape)


def test_indices_are_narrowed_and_values_kept() -> None:
    x = long_indices()
    found = SparseFeatures(x).scipy()
    assert found.indices.dtype == found.indptr.dtype == np.int32
    assert np.array_equal(found.toarray(), x.toarray()) and np.array_equal(narrow(x).toarray(), x.toarray())


@pytest.mark.parametrize("several", [False, True])
def test_estimators_take_them(several: bool) -> None:
    rng = np.random.default_rng(0)
    x = SparseFeatures(long_indices()).scipy()
    y = rng.integers(2, size=(40, 3)) if several else rng.integers(3, size=40)
    assert fit_logistic(x, y, 1.0).predict(x).shape == y.shape
    assert KMeans(2, n_init=1, random_state=0).fit(x.astype(np.float64)).cluster_centers_.shape == (2, 12)
