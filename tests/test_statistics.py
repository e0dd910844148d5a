"""Intervals and tests against values worked out elsewhere."""

from __future__ import annotations

import pytest

from steca_gym.statistics import mcnemar_exact, paired_difference, wilson


def test_wilson_agrees_with_the_closed_form() -> None:
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_mcnemar_is_the_two_sided_binomial() -> None:
    assert mcnemar_exact(0, 5) == pytest.approx(2 / 32)
    assert mcnemar_exact(3, 3) == 1.0
    assert mcnemar_exact(0, 0) == 1.0


def test_paired_difference_covers_and_reverses() -> None:
    first, second = [True] * 10 + [False] * 30, [True] * 25 + [False] * 15
    d, low, high = paired_difference(first, second)
    assert d == pytest.approx(15 / 40) and 0 < low < d < high < 1
    reverse = paired_difference(second, first)
    assert reverse == pytest.approx((-d, -high, -low))
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([True], [])
