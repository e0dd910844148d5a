"""The detectors, fatal actions, corrections by the agent's own alternatives, and who may repair."""

from __future__ import annotations

import random

import pytest

from steca_gym.agent import Need, TurnRequest
from steca_gym.calibration import (
    AgentRepair,
    CalibrationSettings,
    Detection,
    DetectionCase,
    StepRewardSettings,
    WeightSettings,
    calibrate,
    result_from_json,
    result_to_json,
    weighted_samples,
)
from steca_gym.calibration.detectors import detectors
from steca_gym.calibration.foresight import TemplateForesight, foresee
from steca_gym.calibration.records import Reflection
from steca_gym.calibration.reflection import ReflectionCase, TemplateReflector
from steca_gym.calibration.schedule import Procedure
from steca_gym.calibration.settings import DETECTORS
from steca_gym.collectors.collector import Collector
from steca_gym.env import Outcome, TextEnv, World
from steca_gym.errors import ConfigError, UnknownNameError
from tests.calibration.test_pipeline import collect, experts, slipping
from tests.calibration_world import Corridor, FromStart, PolicyAgent, make_corridor

FIXED = StepRewardSettings(estimator="fixed", num_samples=4)


class Cliff(Corridor):
    """ "jump" ends the episode; the pit cannot be left, and the world does not say so."""

    def act(self, action: str) -> Outcome:
        outcome = super().act(action)
        if action != "jump":
            return outcome
        return Outcome(observation=outcome.observation, over=True)

    winnable = World.winnable


class Silent(Corridor):
    """The pit cannot be left, and the world does not say so."""

    winnable = World.winnable


def make_cliff() -> TextEnv:
    return TextEnv(Cliff(), horizon=14)


def make_silent() -> TextEnv:
    return TextEnv(Silent(), horizon=14)


# -- fatal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "reason", "samples"),
    [(make_cliff, "ended", False), (make_corridor, "unwinnable", False), (make_silent, "lost", True)],
    ids=["ended", "unwinnable", "lost"],
)
def test_a_fatal_action_teaches_the_right_one_before_it(make, reason: str, samples: bool) -> None:  # type: ignore[no-untyped-def]
    settings = CalibrationSettings(value_expert_step=False)
    result = calibrate(
        Collector(make, slipping("jump", 3)), experts(2), settings=settings, reward_settings=FIXED, make_env=make
    )
    assert [r.error for r in result.results] == ["", ""]
    assert getattr(result.counts, f"num_fatal_{reason}") == 2 == result.counts.num_fatal
    assert result.counts.num_deviated == 0
    assert (result.counts.num_samples > 0) == samples
    assert f"2 {'ended' if reason == 'ended' else 'left' if reason == 'unwinnable' else 'lost'}" in " ".join(
        result.counts.lines("kept")
    )
    for found in result.results:
        verdict = found.verdicts[3]
        assert verdict.verdict == "fatal" and verdict.fatal == reason
        assert verdict.basis == ("values" if samples else "world")
        (calibration,) = found.calibrations
        assert calibration.kind == "fatal" and calibration.status == "accepted" and calibration.reason
        assert calibration.trajectory.actions == ("go on",) * 4  # no trace of the wrong action
        assert [s.trainable for s in calibration.trajectory.steps] == [False, False, False, True]
        thought = calibration.trajectory.steps[3].thought
        assert thought == calibration.reflection.text == "Not jump: I should go on."
        pair = calibration.pair
        assert pair is not None and len(pair.prefix) == 3 and pair.kind == "fatal"
        assert pair.chosen_steps[0].action == "go on" and pair.rejected_steps[0].action == "jump"
        assert result_from_json(result_to_json(found)) == found
    samples_made = weighted_samples(result.results, experts(2), WeightSettings(), distance=lambda a, b: 0.5)
    assert {s.kind for s in samples_made} == {"fatal"} and {s.weight for s in samples_made} == {1.5}
    none = weighted_samples(result.results, experts(2), WeightSettings(fatal=False), distance=lambda a, b: 0.5)
    assert none == []


def test_a_lost_state_that_an_expert_leads_out_of_is_corrected_as_usual() -> None:
    result = calibrate(collect(slipping("lock", 2, helpless=True)), experts(1), make_env=make_corridor)
    (calibration,) = result.calibrations
    assert result.results[0].verdicts[2].fatal == "lost"
    assert calibration.kind == "corrected" and calibration.status == "accepted" and calibration.repaired
    assert calibration.pair is None


def test_the_horizon_is_no_fatal_action() -> None:
    def make() -> TextEnv:
        return TextEnv(Corridor(), horizon=6)

    result = calibrate(Collector(make, slipping("wait", 5)), experts(1), reward_settings=FIXED, make_env=make)
    assert result.counts.num_fatal_ended == 0


def test_a_reflector_may_write_the_thought_before_the_fact() -> None:
    class Own(TemplateReflector):
        def foresee(self, cases: list[ReflectionCase]) -> list[Reflection]:
            return [Reflection(text=f"Never {c.wrong.action}.", source="own") for c in cases]

    result = calibrate(collect(slipping("jump", 3)), experts(1), reflector=Own(), make_env=make_corridor)
    assert result.accepted[0].reflection == Reflection(text="Never jump.", source="own")
    assert foresee([], Own()) == [] and TemplateForesight().foresee([]) == []


# -- detectors ---------------------------------------------------------------------------------------------------------


def test_every_uses_all_deviations_and_compare_the_first() -> None:
    def twice(request: TurnRequest, rng: random.Random) -> str:
        last = request.messages[-1].content
        lost = any("lock" in m.content for m in request.messages if m.role == "assistant")
        if lost or (request.sampling.temperature == 0 and last.endswith(("room 1.", "room 4."))):
            return "lock"
        return request.expert_action or "wait"

    found = {}
    for name in ("compare", "every"):
        settings = CalibrationSettings(detector=name)
        result = calibrate(collect(PolicyAgent(twice)), experts(1), settings=settings, make_env=make_corridor)
        assert all(c.status == "accepted" for c in result.calibrations)
        found[name] = [c.step for c in result.calibrations]
    assert found == {"compare": [1], "every": [1, 4]}


@pytest.mark.parametrize("room", [1, 2, 4])
def test_bisect_finds_the_first_irrecoverable_step_of_the_agents_own_episode(room: int) -> None:
    """The agent dawdles harmlessly from room 0 on, jumps in one room and is lost from there on."""

    def policy(request: TurnRequest, rng: random.Random) -> str:
        past = [m.content.rsplit("Action: ", 1)[-1] for m in request.messages if m.role == "assistant"]
        if not past:
            return "wait" if request.sampling.temperature == 0 else "go on"
        if request.sampling.temperature == 0 and request.messages[-1].content.endswith(f"room {room}."):
            return "jump"
        return "go on" if past[-1] != "jump" and "jump" not in past else "wait"

    settings = CalibrationSettings(detector="bisect", num_probes=2)
    result = calibrate(Collector(make_silent, PolicyAgent(policy)), experts(1), settings=settings, make_env=make_silent)
    found = result.results[0]
    assert found.error == ""
    last = found.verdicts[-1]
    # One waiting turn, then the rooms: the jump is step room + 1 of the agent's own episode.
    assert last.verdict == "fatal" and last.step == room + 1 and last.agent_action == "jump"
    assert last.expert_action == ""  # no demonstration leads there
    states = 14  # to the horizon
    assert result.counts.num_samples <= 2 * (states.bit_length() + 1)
    (calibration,) = found.calibrations
    assert calibration.kind == "fatal" and calibration.status == "accepted"
    assert calibration.trajectory.actions == ("wait", *("go on",) * room, "go on")


@pytest.mark.parametrize(("first_repetition", "step"), [(True, 3), (False, 5)])
def test_bisect_corrects_the_first_of_a_repetition(first_repetition: bool, step: int) -> None:
    """The agent waits in room 2 for ever; sampled, it still goes on after one or two of these, not after three."""

    def policy(request: TurnRequest, rng: random.Random) -> str:
        past = [m.content.rsplit("Action: ", 1)[-1] for m in request.messages if m.role == "assistant"]
        if not past:
            return "detour" if request.sampling.temperature == 0 else "go on"
        if not request.messages[-1].content.endswith("room 2."):
            return "go on"
        stuck = request.sampling.temperature == 0 or past.count("wait") >= 3
        return "wait" if stuck else "go on"

    settings = CalibrationSettings(detector="bisect", first_repetition=first_repetition)
    result = calibrate(Collector(make_silent, PolicyAgent(policy)), experts(1), settings=settings, make_env=make_silent)
    found = result.results[0]
    assert found.error == ""
    last = found.verdicts[-1]
    assert (last.step, last.agent_action) == (step, "wait")
    assert last.verdict == ("deviated" if first_repetition else "fatal")
    assert last.note == ("the first of 3 in vain, after which the game is lost" if first_repetition else "")
    (calibration,) = result.accepted
    assert calibration.step == step
    assert result_from_json(result_to_json(found)) == found


def test_bisect_asks_the_world_before_it_samples() -> None:
    settings = CalibrationSettings(detector="bisect")
    result = calibrate(collect(slipping("jump", 3)), experts(1), settings=settings, make_env=make_corridor)
    last = result.results[0].verdicts[-1]
    assert (last.step, last.fatal, result.counts.num_samples) == (3, "unwinnable", 0)


def test_bisect_keeps_what_the_agent_wins() -> None:
    settings = CalibrationSettings(detector="bisect")
    result = calibrate(collect(slipping("detour", 3)), experts(1), settings=settings, make_env=make_corridor)
    assert result.calibrations == [] and result.counts.num_won_anyway == 1
    assert len(result.explored_successes) == 1


def test_the_ablations_ask_for_no_values() -> None:
    for name in ("random", "first_difference"):
        settings = CalibrationSettings(detector=name)
        agent = slipping("detour", 3, helpless=True)
        result = calibrate(collect(agent), experts(1), settings=settings, make_env=make_corridor)
        assert [c.step for c in result.accepted] == [3]
        assert result.counts.num_samples == result.counts.num_compared == 0
        assert result.counts.num_not_compared_deviated == 1
        won = calibrate(collect(slipping("detour", 3)), experts(1), settings=settings, make_env=make_corridor)
        assert won.calibrations == [] and won.counts.num_won_anyway == 1
        fatal = calibrate(collect(slipping("jump", 3)), experts(1), settings=settings, make_env=make_corridor)
        assert fatal.accepted[0].kind == "fatal"


class NothingDetector:
    def detect(self, case: DetectionCase) -> Procedure[Detection]:
        yield from ()
        return Detection()


def test_the_settings_know_every_detector() -> None:
    assert sorted(DETECTORS) == sorted(detectors)


def test_a_detector_of_ones_own_is_named_by_module_and_class() -> None:
    settings = CalibrationSettings(detector=f"{__name__}:NothingDetector")
    result = calibrate(collect(slipping("jump", 3)), experts(1), settings=settings)
    assert result.results[0].verdicts == () and result.calibrations == []
    with pytest.raises(UnknownNameError, match="did you mean 'bisect'"):
        calibrate(collect(slipping("jump", 3)), [], settings=CalibrationSettings(detector="bisec"))
    with pytest.raises(ConfigError):
        calibrate(collect(slipping("jump", 3)), [], settings=CalibrationSettings(detector="no_such_module:X"))


# -- the agent's own corrections ---------------------------------------------------------------------------------------


def sampled_finds_out(wrong: str) -> PolicyAgent:
    """Greedily errs in room 2 and then waits; sampled it mostly finds the way on."""

    def policy(request: TurnRequest, rng: random.Random) -> str:
        greedy = request.sampling.temperature == 0
        if any(wrong in m.content for m in request.messages if m.role == "assistant") and greedy:
            return "wait"
        if greedy:
            return wrong if request.messages[-1].content.endswith("room 2.") else "go on"
        good = "unlock" if "locked" in request.messages[-1].content else "go on"
        return good if rng.random() < 0.85 else "wait"

    return PolicyAgent(policy)


def test_an_own_alternative_is_verified_and_kept_where_no_expert_knows_the_way() -> None:
    def make() -> TextEnv:
        return TextEnv(FromStart(), horizon=14)

    settings = CalibrationSettings(detector="first_difference", correction="own", num_alternatives=8)
    result = calibrate(Collector(make, sampled_finds_out("lock")), experts(2), settings=settings, make_env=make)
    assert len(result.accepted) == 2
    for calibration in result.accepted:
        steps = calibration.trajectory.steps
        assert calibration.kind == "corrected" and calibration.trajectory.won and not calibration.repaired
        assert steps[2].action == "lock" and steps[3].source == "reflection"
        assert calibration.expert_action == steps[3].action
        assert {s.source for s in steps[4:]} == {"agent"}
        assert "its continuations" in calibration.reason or "own alternative" in calibration.reason
    again = calibrate(Collector(make, sampled_finds_out("lock")), experts(2), settings=settings, make_env=make)
    assert again == result


def test_an_own_alternative_before_a_fatal_action() -> None:
    settings = CalibrationSettings(detector="first_difference", correction="own", num_alternatives=8)
    result = calibrate(collect(sampled_finds_out("jump")), experts(1), settings=settings, make_env=make_corridor)
    (calibration,) = result.accepted
    assert calibration.kind == "fatal" and calibration.trajectory.actions[2] != "jump"
    assert calibration.pair is not None


def test_without_a_winning_alternative_nothing_is_made_up() -> None:
    settings = CalibrationSettings(detector="first_difference", correction="own")

    def hopeless(request: TurnRequest, rng: random.Random) -> str:
        return "wait"

    result = calibrate(collect(PolicyAgent(hopeless)), experts(1), settings=settings, make_env=make_corridor)
    (calibration,) = result.calibrations
    assert calibration.status == "refused" and "none of the agent's own" in calibration.reason


# -- who repairs -------------------------------------------------------------------------------------------------------


class Searching(PolicyAgent):
    """An expert that acts on the conversation alone."""

    needs: frozenset[Need] = frozenset()

    def __init__(self) -> None:
        super().__init__(self._search, name="searching")

    @staticmethod
    def _search(request: TurnRequest, rng: random.Random) -> str:
        locked = request.messages[-1].content == "The door is locked."
        return "Thought: I try the door.\nAction: " + ("unlock" if locked else "go on")


def test_an_agent_repairs_where_the_worlds_own_expert_cannot() -> None:
    def make() -> TextEnv:
        return TextEnv(FromStart(), horizon=14)

    agent = slipping("lock", 2, helpless=True)
    result = calibrate(Collector(make, agent), experts(2), expert=Searching())
    assert len(result.accepted) == 2
    for calibration in result.accepted:
        assert calibration.repaired and calibration.trajectory.won
        assert calibration.trajectory.actions[2:5] == ("lock", "unlock", "go on")
        assert [s.source for s in calibration.trajectory.steps[3:]] == ["reflection", *["expert"] * 4]
    assert AgentRepair(Searching(), make).name == "searching"


def test_an_agent_that_does_not_win_repairs_nothing() -> None:
    def make() -> TextEnv:
        return TextEnv(FromStart(), horizon=14)

    idle = PolicyAgent(lambda request, rng: "wait", name="idle")
    settings = CalibrationSettings(detect_fatal=False)
    result = calibrate(Collector(make, slipping("lock", 2, helpless=True)), experts(1), settings=settings, expert=idle)
    (calibration,) = result.calibrations
    assert calibration.status == "refused" and "'idle' did not win" in calibration.reason


def test_a_library_user_gets_repairs_without_naming_the_environment_twice() -> None:
    result = calibrate(collect(slipping("lock", 2, helpless=True)), experts(1))
    assert result.accepted[0].repaired


# -- what the authors' code does ---------------------------------------------------------------------------------------


def test_whole_episodes_and_demonstrations_of_failed_tasks() -> None:
    settings = CalibrationSettings(explored="episodes", failed_demonstrations=True, detector="every")
    won = calibrate(collect(slipping("detour", 3)), experts(1), settings=settings, make_env=make_corridor)
    (episode,) = won.explored_successes
    assert episode.won and all(s.trainable for s in episode.steps) and won.expert_subtrajectories == []
    agent = slipping("detour", 3, helpless=True)
    lost = calibrate(collect(agent), experts(1), settings=settings, make_env=make_corridor)
    whole, part = lost.expert_subtrajectories
    assert whole.step == 0 and all(s.trainable for s in whole.trajectory.steps)
    assert whole.failed_continuation.actions[3] == "detour" and part.step == 3
    assert lost.explored_successes == []


def test_the_distance_of_a_correction_may_leave_the_wrong_action_out() -> None:
    result = calibrate(collect(slipping("detour", 3, helpless=True)), experts(1), make_env=make_corridor)
    seen: list[tuple[str, ...]] = []

    def distance(a: object, b: tuple[str, ...]) -> float:
        seen.append(tuple(b))
        return 0.0

    for with_it in (True, False):
        settings = WeightSettings(
            wrong_action_in_distance=with_it, explored=False, expert_subtrajectories=False, fatal=False
        )
        weighted_samples(result.results, [], settings, distance=distance)
    assert seen[0][0] == "detour" and seen[1] == seen[0][1:]
