"""Edits are executed: what does not win is refused, and what the edited action changes is stored as it was played."""

import pytest

from steca_gym.calibration import calibrate
from steca_gym.env import TextEnv
from steca_gym.errors import DataError, WorldError
from steca_gym.review.editing import Edit, Editor
from tests.calibration.test_pipeline import collect, experts, make_corridor, slipping
from tests.calibration_world import Corridor
from tests.fakes import FakeAgent


def found(wrong="wait"):
    (calibration,) = calibrate(collect(slipping(wrong, 2, helpless=True)), experts(1), make_env=make_corridor).accepted
    return calibration


@pytest.fixture
def editor():
    return Editor(make_corridor, FakeAgent(lambda _: ""))


def test_a_reflection_needs_no_execution_and_lands_in_the_turn_that_is_taught(editor):
    c = found()
    changed = editor.apply(c, Edit(reflection=" I must not wait. ", action=c.expert_action), who="Ada")
    assert changed.reflection.text == "I must not wait." and changed.reflection.source == "person:Ada"
    right = changed.trajectory.steps[c.step + 1]
    assert right.thought == "I must not wait." and "I must not wait." in right.turn_text()
    assert changed.trajectory.actions == c.trajectory.actions
    assert changed.trajectory.trajectory_id != c.trajectory.trajectory_id
    with pytest.raises(DataError, match="nothing was changed"):
        editor.apply(changed, Edit(reflection="I must not wait.", action=c.expert_action), who="Ben")


def test_another_action_is_executed_and_an_expert_continues_from_it(editor):
    c = found()
    changed = editor.apply(c, Edit(reflection=c.reflection.text, action="detour"), who="Ada")
    steps = changed.trajectory.steps
    assert changed.trajectory.won and changed.status == "accepted" and changed.repaired
    assert steps[c.step].action == "wait" and steps[c.step + 1].action == "detour"
    assert [s.trainable for s in steps] == [False] * (c.step + 1) + [True] * (len(steps) - c.step - 1)
    assert steps[c.step + 1].source == "reflection" and steps[c.step + 1].observation == "You are in room 0."
    assert changed.expert_action == "detour" and "expert continued" in changed.reason


@pytest.mark.parametrize(
    ("action", "told"),
    [
        ("fly", "did not understand 'fly'"),
        ("jump", "not lead to a win|is not won"),
        ("", "one line"),
        ("a\nb", "one line"),
    ],
)
def test_what_does_not_win_is_refused_with_the_reason(editor, action, told):
    c = found()
    with pytest.raises(DataError, match=told):
        editor.apply(c, Edit(reflection="x", action=action), who="Ada")


def test_the_right_action_before_a_fatal_one_has_to_lead_to_a_win(editor):
    c = found("jump")
    assert c.kind == "fatal"
    changed = editor.apply(c, Edit(reflection="A pit is ahead.", action="wait"), who="Ada")
    assert changed.kind == "fatal" and changed.trajectory.actions[-1] == "wait"
    assert changed.trajectory.steps[-1].thought == "A pit is ahead." and not changed.trajectory.won
    assert len(changed.trajectory) == len(c.trajectory)
    with pytest.raises(DataError):
        editor.apply(c, Edit(reflection="x", action="jump"), who="Ada")


def test_another_world_is_refused():
    class Moved(Corridor):
        def _see(self):
            return f"You are in hall {self._room}."

    editor = Editor(lambda: TextEnv(Moved(), horizon=14), FakeAgent(lambda _: ""))
    with pytest.raises(WorldError, match="did not lead to the same place|is made|environment is"):
        editor.apply(found(), Edit(reflection="x", action="detour"), who="Ada")
