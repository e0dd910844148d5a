"""Agreement with other implementations where they compute the same thing; needs the peers extra."""

from __future__ import annotations

import numpy as np
import pytest

from steca_gym.distances import dndtw, dndtw_path


def unit_pair(seed):
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(n, 12)) for n in rng.integers(2, 40, 2))
    return x / np.linalg.norm(x, axis=1)[:, None], y / np.linalg.norm(y, axis=1)[:, None]


@pytest.mark.parametrize("seed", range(5))
def test_aeon(seed):
    aeon = pytest.importorskip("aeon.distances")
    x, y = unit_pair(seed)
    assert dndtw(x, y, normalize="none") == pytest.approx(aeon.dtw_distance(x.T, y.T) / 2, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_dtaidistance_with_and_without_a_band(seed):
    dtw_ndim = pytest.importorskip("dtaidistance.dtw_ndim")
    x, y = unit_pair(seed)
    assert dndtw(x, y, normalize="none") == pytest.approx(dtw_ndim.distance(x, y) ** 2 / 2, abs=1e-5)
    x, y = x[: len(y)], y[: len(x)]
    banded = dtw_ndim.distance(x, y, window=3) ** 2 / 2  # a window of 3 holds |i - j| <= 2
    assert dndtw(x, y, normalize="none", band=2) == pytest.approx(banded, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_librosa_with_its_path(seed):
    sequence = pytest.importorskip("librosa.sequence")
    x, y = unit_pair(seed)
    cells, path = sequence.dtw(C=1 - x @ y.T)
    distance, ours = dndtw_path(x, y, normalize="none")
    assert distance == pytest.approx(cells[-1, -1], abs=1e-5)
    np.testing.assert_array_equal(ours, path[::-1])
