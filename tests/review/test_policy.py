"""Who has to decide about which correction, and in which form each counts."""

import dataclasses

import pytest

from steca_gym.buffer.decisions import Decision, Standing
from steca_gym.calibration.records import Reflection, calibration_to_json
from steca_gym.errors import ConfigError
from steca_gym.review.config import ReviewConfig
from steca_gym.review.policy import effective_results, standing_of, waiting
from tests.reports.runs import result_of

REQUIRED = ReviewConfig(mode="required")


def entry(calibration_id, decision, **more):
    return Decision(at="", calibration_id=calibration_id, decision=decision, who="Ada", why="", **more)


def standings(*entries):
    found = {}
    for e in entries:
        standing = found.setdefault(e.calibration_id, Standing())
        standing.entries.append(e)
        standing.num_entries += 1
    return found


@pytest.mark.parametrize(
    "mode", ["", "always", "sample", "sample:", "sample:0", "sample:1.5", "sample:nan", "sample:x"]
)
def test_another_mode_is_one_line(mode):
    with pytest.raises(ConfigError, match="review.mode must be auto, required or sample:P"):
        ReviewConfig(mode=mode)
    with pytest.raises(ConfigError, match="own_edits must be"):
        ReviewConfig(own_edits="maybe")


def test_a_sample_is_a_part_and_always_the_same_one():
    tenth, half = ReviewConfig(mode="sample:0.1"), ReviewConfig(mode="sample:0.5")
    ids = [f"c-{i}" for i in range(2000)]
    chosen = {i for i in ids if tenth.chosen(i)}
    assert 150 < len(chosen) < 250 and chosen < {i for i in ids if half.chosen(i)}
    assert all(REQUIRED.chosen(i) for i in ids) and not any(ReviewConfig().chosen(i) for i in ids)


def test_what_waits_under_each_mode():
    results = [result_of(n) for n in range(4)]  # c-2 was refused by its execution
    decided = standings(entry("c-0", "approved"), entry("c-1", "refused"))
    assert waiting(results, decided, REQUIRED) == (["c-3"], 3)
    assert waiting(results, decided, ReviewConfig()) == ([], 0)
    states = [standing_of(f"c-{n}", "refused" if n == 2 else "accepted", decided, REQUIRED) for n in range(4)]
    assert states == ["approved", "refused", "free", "waiting"]


def test_an_own_edit_waits_for_another_person_where_that_is_asked_for():
    edited = standings(entry("c-0", "edited", after="{}"))
    strict = ReviewConfig(own_edits="refused")
    assert standing_of("c-0", "accepted", edited, ReviewConfig()) == "free"
    assert standing_of("c-0", "accepted", edited, strict) == "waiting"
    assert waiting([result_of(0), result_of(1)], edited, strict) == (["c-0"], 1)


def test_results_count_as_edited_and_without_what_was_refused():
    first, second = result_of(0), result_of(1)
    (c,) = first.calibrations
    changed = dataclasses.replace(c, reflection=Reflection(text="Better.", source="person:Ada"))
    decided = standings(entry("c-0", "edited", after=calibration_to_json(changed)), entry("c-1", "refused"))
    found = effective_results([first, second], decided)
    assert found[0].calibrations == (changed,) and found[1].calibrations == ()
    assert effective_results([first, second], {}) == [first, second]
