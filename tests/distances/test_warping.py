"""The public distances against the plain-Python oracle, and the properties that they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steca_gym.distances import Ragged, dndtw, dndtw_matrix, dndtw_pairs, dndtw_path, warping
from steca_gym.distances._kernels import batches
from steca_gym.errors import ConfigError, DataError
from tests.distances import oracle

COSTS = ("cosine", "l2", "exact")
NO_DEADLINE = settings(deadline=None, max_examples=30, derandomize=True)


def words(dtype=np.float32, count=25, dim=6):
    vectors = np.random.default_rng(1).normal(size=(count, dim)).astype(dtype)
    vectors[3] = vectors[4] * (1 + 1e-6)  # nearly equal: where a Gram matrix loses its digits
    return vectors


def batch(seed, size, longest, count=25):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, count, rng.integers(1, longest + 1)) for _ in range(size)]


def expected(a, b, vectors, **options):
    return np.array([[oracle.dndtw(vectors[x], vectors[y], **options) for y in b] for x in a])


@pytest.mark.slow
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_form_agrees_with_the_oracle(cost, dtype):
    vectors = words(dtype)
    a, b = batch(0, 21, 13), batch(1, 18, 9)
    want = expected(a, b, vectors, cost=cost)
    atol = 2e-6 if dtype == np.float32 else 1e-12
    embedded_a, embedded_b = [vectors[x] for x in a], [vectors[y] for y in b]
    offsets = [np.cumsum([0, *map(len, side)]) for side in (a, b)]
    forms = [
        dndtw_matrix(a, b, vectors=vectors, cost=cost),
        dndtw_matrix(embedded_a, embedded_b, cost=cost, num_threads=3),
        dndtw_matrix(
            Ragged(np.concatenate(embedded_a), offsets[0]),
            Ragged(np.concatenate(embedded_b), offsets[1]),
            cost=cost,
        ),
        dndtw_matrix(embedded_b, embedded_a, cost=cost).T,
        [[dndtw(x, y, cost=cost) for y in embedded_b] for x in embedded_a],
    ]
    for form in forms:
        np.testing.assert_allclose(form, want, atol=atol, rtol=1e-5)
    pairs = dndtw_pairs(embedded_a[:18], embedded_b, cost=cost)
    np.testing.assert_allclose(pairs, np.diag(want), atol=atol, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("band", [0, 2, 7])
@pytest.mark.parametrize("normalize", ["sum", "none"])
def test_bands_agree_with_the_oracle(band, normalize):
    vectors = words()
    a, b = batch(2, 19, 17), batch(3, 20, 6)
    options = {"band": band, "normalize": normalize}
    want = expected(a, b, vectors, **options)
    np.testing.assert_allclose(dndtw_matrix(a, b, vectors=vectors, **options), want, atol=2e-5)
    np.testing.assert_allclose(dndtw_pairs(a, b[:19], vectors=vectors, **options), np.diag(want), atol=2e-5)
    single = [dndtw(vectors[x], vectors[y], **options) for x, y in zip(a, b, strict=False)]
    np.testing.assert_allclose(single, np.diag(want), atol=2e-5)


def test_a_band_never_shortens_and_a_wide_one_changes_nothing():
    a, b = batch(4, 30, 20), batch(5, 30, 20)
    exact = dndtw_pairs(a, b, vectors=words())
    previous = np.full(30, math.inf)
    for band in (0, 1, 3, 8, 20):
        banded = dndtw_pairs(a, b, vectors=words(), band=band)
        assert (banded >= exact - 1e-6).all() and (banded <= previous + 1e-6).all()
        previous = banded
    np.testing.assert_array_equal(previous, exact)


@pytest.mark.slow
def test_beyond_d_max_is_infinite_and_the_rest_is_exact():
    vectors = words()
    a, b = batch(6, 40, 15), batch(7, 40, 15)
    exact = dndtw_matrix(a, b, vectors=vectors)
    for d_max in (0.0, float(np.median(exact)), 10.0):
        got = dndtw_matrix(a, b, vectors=vectors, d_max=d_max)
        np.testing.assert_array_equal(got, np.where(exact > d_max, math.inf, exact))
        pairs = dndtw_pairs(a, b, vectors=vectors, d_max=d_max)
        np.testing.assert_array_equal(pairs, np.diag(got))
    assert dndtw(vectors[a[0]], vectors[b[0]], d_max=1e-9) == math.inf


def test_equal_sequences_are_at_zero_to_the_bit():
    """Thresholds such as VirtualHome's d_max = 1e-22 ask for exactly this."""
    for cost, dtype in itertools.product(COSTS, (np.float32, np.float64)):
        vectors = words(dtype)
        a = batch(8, 20, 12)
        assert (dndtw_pairs(a, a, vectors=vectors, cost=cost) == 0).all()
        assert (np.diag(dndtw_matrix(a, vectors=vectors, cost=cost)) == 0).all()
        assert all(dndtw(vectors[x], vectors[x].copy(), cost=cost) == 0 for x in a)


@pytest.mark.parametrize("cost", ["cosine", "l2"])
@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e17])
def test_products_that_leave_float32_change_nothing(cost, scale):
    """Squared norms under- or overflow there; -1, 0 and 1 as components, so that scaling is exact."""
    rng = np.random.default_rng(20)
    vectors = rng.integers(-1, 2, (25, 7)).astype(np.float32)
    vectors[:, 0] = 1
    scaled = vectors * np.float32(scale)
    a, b = batch(20, 9, 6), batch(21, 11, 6)
    want = expected(a, b, vectors.astype(np.float64), cost=cost) * (scale if cost == "l2" else 1)
    for form in (
        dndtw_matrix(a, b, vectors=scaled, cost=cost),
        [[dndtw(scaled[x], scaled[y], cost=cost) for y in b] for x in a],
    ):
        np.testing.assert_allclose(form, want, rtol=1e-5, atol=0 if cost == "l2" else 1e-6)


def test_the_matrix_of_one_batch_is_symmetric_to_the_bit_and_equals_the_full_one():
    a = batch(9, 37, 14)
    matrix = dndtw_matrix(a, vectors=words())
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_allclose(matrix, dndtw_matrix(a, list(a), vectors=words()), atol=2e-6)


@given(st.permutations(range(24)), st.integers(1, 4))
@NO_DEADLINE
def test_order_and_threads_do_not_matter(order, num_threads):
    table = np.random.default_rng(2).random((25, 25), dtype=np.float32)
    a, b = batch(10, 24, 11), batch(11, 24, 30)
    pairs = dndtw_pairs(a, b, cost=table)
    shuffled = dndtw_pairs([a[k] for k in order], [b[k] for k in order], cost=table, num_threads=num_threads)
    np.testing.assert_array_equal(shuffled, pairs[list(order)])
    matrix = dndtw_matrix([a[k] for k in order], b, cost=table, num_threads=num_threads)
    np.testing.assert_array_equal(matrix, dndtw_matrix(a, b, cost=table)[list(order)])
    np.testing.assert_array_equal(np.diag(dndtw_matrix(a, b, cost=table)), pairs)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1 << 30), st.sampled_from([None, 0, 3]))
@NO_DEADLINE
def test_path_cost_equals_distance(n, m, seed, band):
    costs = np.random.default_rng(seed).random((n, m))
    distance, path = dndtw_path(cost=costs, band=band, normalize="none")
    assert distance == pytest.approx(costs[path[:, 0], path[:, 1]].sum(), abs=1e-9)
    assert distance == pytest.approx(oracle.accumulate(costs.tolist(), band)[n][m], abs=1e-9)
    assert distance == pytest.approx(dndtw(cost=costs, band=band, normalize="none"), abs=1e-9)
    assert path[0].tolist() == [0, 0] and path[-1].tolist() == [n - 1, m - 1]
    steps = np.diff(path, axis=0)
    assert ((steps >= 0) & (steps <= 1)).all() and (steps.sum(axis=1) >= 1).all()
    assert max(n, m) <= len(path) <= n + m - 1


def test_path_normalisation_divides_by_the_cells_of_the_path():
    a, b = batch(12, 20, 12), batch(13, 20, 12)
    table = np.random.default_rng(3).random((25, 25))
    want = []
    for x, y in zip(a, b, strict=True):
        raw, path = dndtw_path(x, y, cost=table, normalize="none")
        want.append(raw / len(path))
        assert dndtw_path(x, y, cost=table, normalize="path")[0] == pytest.approx(want[-1])
    np.testing.assert_allclose(dndtw_pairs(a, b, cost=table, normalize="path"), want)
    np.testing.assert_allclose([dndtw(x, y, cost=table, normalize="path") for x, y in zip(a, b, strict=True)], want)
    np.testing.assert_allclose(np.diag(dndtw_matrix(a, b, cost=table, normalize="path")), want)


def test_ndtw_is_the_score_of_ilharco():
    vectors = words()
    a, b = batch(14, 9, 8), batch(15, 7, 8)
    raw = dndtw_matrix(a, b, vectors=vectors, normalize="none")
    want = np.exp(-raw / (np.array([len(y) for y in b]) * 0.5))
    np.testing.assert_allclose(dndtw_matrix(a, b, vectors=vectors, normalize="ndtw", d_th=0.5), want)
    assert dndtw(vectors[a[0]], vectors[a[0]], normalize="ndtw", d_th=0.5) == 1.0


def test_texts_go_through_the_encoder_once_each():
    class Counting:
        name, version = "counting", "1"

        def __init__(self):
            self.seen = []

        def encode(self, texts):
            self.seen += texts
            return np.array([[len(t), t.count("e") + 1.0] for t in texts], np.float32)

    encoder = Counting()
    a = [["open the door", "go", "go"], ["take key"]]
    b = [("go", "open the door"), ("take key", "look")]
    got = dndtw_matrix(a, b, encoder=encoder)
    assert sorted(encoder.seen) == ["go", "look", "open the door", "take key"]
    want = [[oracle.dndtw(Counting().encode(x), Counting().encode(y)) for y in b] for x in a]
    np.testing.assert_allclose(got, want, atol=1e-6)
    assert dndtw(["go"], ["go"], cost="exact") == 0 and dndtw(["go"], ["look"], cost="exact", normalize="none") == 1


@pytest.mark.slow
def test_tables_that_do_not_fit_are_worked_off_in_blocks(monkeypatch):
    vectors = words()
    a, b = batch(16, 30, 12), batch(17, 11, 12)
    want = dndtw_matrix(a, b, vectors=vectors)
    pairs = dndtw_pairs(a[:11], b, vectors=vectors)
    by_path = dndtw_pairs(a[:11], b, vectors=vectors, normalize="path")
    whole = dndtw(vectors, vectors[::-1].copy())
    for limit in (1000, 100, 1):
        monkeypatch.setattr(warping, "MAX_TABLE_BYTES", limit)
        monkeypatch.setattr(warping, "MAX_PRODUCTS", 0)
        np.testing.assert_allclose(dndtw_matrix(a, b, vectors=vectors), want, atol=2e-6)
        np.testing.assert_allclose(dndtw_matrix(b, a, vectors=vectors), want.T, atol=2e-6)
        np.testing.assert_allclose(dndtw_pairs(a[:11], b, vectors=vectors), pairs, atol=2e-6)
        np.testing.assert_allclose(dndtw_pairs(a[:11], b, vectors=vectors, normalize="path"), by_path, atol=2e-6)
        assert dndtw(vectors, vectors[::-1].copy()) == pytest.approx(whole, abs=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_column_tiles_change_nothing(monkeypatch, dtype):
    table = np.random.default_rng(4).random((25, 25)).astype(dtype)
    a, b = batch(18, 40, 17), batch(19, 45, 23)
    kinds = [{}, {"band": 0}, {"band": 2}, {"band": 9}, {"d_max": 0.3}, {"band": 3, "d_max": 0.4}]
    kinds = kinds[:1] if dtype == np.float64 else kinds  # each option compiles a kernel
    whole = [dndtw_matrix(a, b, cost=table, **options) for options in kinds]
    one = dndtw_matrix(a, cost=(table + table.T) / 2)
    for width in (1, 2, 5):
        monkeypatch.setattr(batches, "_tile", lambda length, *_, width=width: min(width, length))
        for options, want in zip(kinds, whole, strict=True):
            np.testing.assert_array_equal(dndtw_matrix(a, b, cost=table, **options), want)
        np.testing.assert_array_equal(dndtw_matrix(a, cost=(table + table.T) / 2), one)


def test_views_and_mixed_types_are_read_as_what_they_show():
    wide = np.random.default_rng(22).normal(size=(40, 12))
    views = [wide[3:9, ::2], wide[::-3, 6:], wide[:1, :6], np.asfortranarray(wide[:5, :6])]
    copies = [np.ascontiguousarray(view) for view in views]
    np.testing.assert_array_equal(dndtw_matrix(views), dndtw_matrix(copies))
    np.testing.assert_array_equal(dndtw_pairs(views, views[::-1]), dndtw_pairs(copies, copies[::-1]))
    mixed = [copies[0], copies[1].astype(np.float32), copies[2].tolist()]
    np.testing.assert_allclose(dndtw_matrix(mixed), dndtw_matrix(copies[:3]), atol=1e-6)


def test_very_unequal_lengths_and_empty_batches():
    vectors = words()
    rng = np.random.default_rng(5)
    a = [rng.integers(0, 25, n) for n in (300, 1, 2, 1, 90, 3)]
    b = [rng.integers(0, 25, n) for n in (1, 200, 2, 1, 1, 150)]
    want = [dndtw_path(x, y, vectors=vectors)[0] for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(dndtw_pairs(a, b, vectors=vectors), want, rtol=1e-5)
    np.testing.assert_allclose(np.diag(dndtw_matrix(a, b, vectors=vectors)), want, rtol=1e-5)
    assert dndtw_pairs([], []).shape == (0,)
    assert dndtw_matrix([], [["go"]]).shape == (0, 1)


X = np.ones((3, 4), np.float32)


def spoilt(value, at=(1, 2)):
    bad = X.copy()
    bad[at] = value
    return bad


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dndtw([], ["go"]), "a is empty"),
        (lambda: dndtw("go", ["go"]), "a must be a sequence of steps, got str"),
        (lambda: dndtw_pairs([["go"], []], [["go"], ["go"]]), r"A\[1\] is empty"),
        (lambda: dndtw_pairs([["go"]], [["go"], ["go"]]), "got 1 and 2"),
        (lambda: dndtw_pairs(["go"], ["go"]), r"A\[0\] is a text"),
        (lambda: dndtw(X, spoilt(np.nan)), r"b\[1\] component 2 is nan"),
        (lambda: dndtw_pairs([X, X], [X, spoilt(np.inf)]), r"B\[1\]\[1\] component 2 is inf"),
        (lambda: dndtw(X, X[:, :3]), "dim 4 and b dim 3"),
        (lambda: dndtw_matrix([X, X[:, :3]]), r"A\[1\] has shape \(3, 3\)"),
        (lambda: dndtw(X, spoilt(0, 1)), r"b\[1\] is all zeros"),
        (lambda: dndtw(cost=np.array([[0.1, -0.5]])), r"got -0.5 at \[0, 1\]"),
        (lambda: dndtw(cost=np.array([[0.1, np.nan]])), r"got nan at \[0, 1\]"),
        (lambda: dndtw([0, 7], [1], vectors=X), r"a\[1\] is index 7, expected 0 to 2"),
        (lambda: dndtw_matrix(Ragged(X, [0, 2])), "run from 0 to 3"),
        (lambda: dndtw_matrix(Ragged(X, [0, 2, 2, 3])), "sequence 1 spans 2 to 2"),
        (lambda: dndtw(["go"], X), "a holds texts and b holds vectors"),
        (lambda: dndtw(np.array(["go"]), ["go"]), "must be texts, embeddings"),
    ],
)
def test_wrong_data_is_named_with_index_and_value(call, message):
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"normalize": "sqr"}, "did you mean 'sqrt'"),
        ({"cost": "cosin"}, "did you mean 'cosine'"),
        ({"band": -1}, "band must be"),
        ({"d_max": -0.1}, "d_max must be >= 0"),
        ({"d_max": math.nan}, "d_max must be >= 0"),
        ({"normalize": "ndtw"}, "needs d_th > 0"),
        ({"d_th": 1.0}, "belongs to normalize='ndtw'"),
        ({"normalize": "ndtw", "d_th": 1.0, "d_max": 1.0}, "drop one"),
        ({"encoder": "hsh"}, "an encoder reads texts"),
        ({"vectors": X}, "vectors= are read by integer indices"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        dndtw(X, X, **options)


def test_unknown_encoders_and_thread_counts_are_refused():
    with pytest.raises(ConfigError, match="did you mean 'hash'"):
        dndtw(["go"], ["go"], encoder="hsh")
    with pytest.raises(ConfigError, match="num_threads must be >= 1"):
        dndtw_pairs([["go"]], [["go"]], num_threads=0)
    with pytest.raises(ConfigError, match="needs two sequences"):
        dndtw()
    with pytest.raises(ConfigError, match="indices need vectors="):
        dndtw([0], [1])
