"""Exploration, detection, correction and the whole of calibration on a corridor with exact answers."""

import dataclasses
import random

import pytest

from steca_gym.agent import TurnRequest
from steca_gym.calibration import (
    CalibrationSettings,
    ExpertResult,
    StepRewardSettings,
    WeightSettings,
    calibrate,
    calibration_weight,
    detect,
    execute,
    exploration_weight,
    explore,
    load_preset,
    reflect,
    result_from_json,
    result_to_json,
    splice,
    weighted_samples,
)
from steca_gym.calibration.reflection import TemplateReflector
from steca_gym.collectors.collector import Collector
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError, DataError, UnknownNameError
from steca_gym.trajectory import Trajectory
from tests.calibration_world import LENGTH, Corridor, FromStart, PolicyAgent, make_corridor

FIXED = StepRewardSettings(estimator="fixed", num_samples=5)


def experts(count: int = 3) -> list[Trajectory]:
    agent = PolicyAgent(lambda request, _: request.expert_action or "wait", name="expert")
    requests = [EpisodeRequest(task_id=f"walk-{i}", seed=i) for i in range(count)]
    return [e.trajectory for e in Collector(make_corridor, agent).run(requests)]


def slipping(wrong: str, room: int, *, slip: float = 0.0, helpless: bool = False) -> PolicyAgent:
    """Greedily takes the wrong action in one room; sampled, it follows the expert but for slips into the pit.

    ``helpless``: after the wrong action it only waits.
    """

    def policy(request: TurnRequest, rng: random.Random) -> str:
        history = [m.content for m in request.messages if m.role == "assistant"]
        taken = any(wrong in text for text in history)
        if taken and helpless:
            return "wait"
        if request.sampling.temperature == 0 and not taken:
            if request.messages[-1].content.endswith(f"room {room}."):
                return wrong
        if request.sampling.temperature > 0 and rng.random() < slip:
            return "jump"
        return request.expert_action or "wait"

    return PolicyAgent(policy)


def collect(agent: PolicyAgent, num_envs: int = 8) -> Collector:
    return Collector(make_corridor, agent, num_envs=num_envs)


def test_exploration_asks_the_agent_in_every_state_of_the_expert() -> None:
    (exploration,) = explore(collect(slipping("jump", 3)), experts(1), CalibrationSettings())
    assert exploration.error == ""
    assert len(exploration.forks) == LENGTH + 1
    assert [s.step for s in exploration.steps] == list(range(LENGTH))
    assert [s.turn.action for s in exploration.steps] == ["go on"] * 3 + ["jump"] + ["go on"] * 2
    assert [s.same_action for s in exploration.steps] == [True] * 3 + [False] + [True] * 2
    assert exploration.steps[3].trajectory.steps[3].observation == "You fall into a pit."
    assert exploration.steps[5].over and not exploration.steps[4].over
    assert exploration.counts.num_steps == LENGTH


@pytest.mark.parametrize("rewards", [FIXED, StepRewardSettings()], ids=["fixed", "racing"])
@pytest.mark.parametrize("preset", ["default", "paper", "repo"])
def test_an_irreversible_action_is_found_and_its_calibration_refused(preset: str, rewards: StepRewardSettings) -> None:
    settings = load_preset(preset, same_action="exact", detect_fatal=False).calibration
    result = calibrate(
        collect(slipping("jump", 3)),
        experts(),
        settings=settings,
        reward_settings=rewards,
        make_env=make_corridor,
    )
    assert [r.error for r in result.results] == [""] * 3
    for found in result.results:
        (calibration,) = found.calibrations
        assert calibration.step == 3
        assert calibration.deviated.action == "jump"
        assert calibration.status == "refused" and calibration.kind == "corrected"
        assert "cannot be won any more" in calibration.reason
        assert calibration.verdicts[-1].verdict == "deviated"
        last = calibration.verdicts[-1]
        assert last.expert_reward is not None and last.expert_reward.mean == 1.0
        assert last.agent_reward is not None and last.agent_reward.mean == 0.0
    assert result.accepted == []
    assert result.counts.num_refused == result.counts.num_deviated == 3


def test_a_detour_that_fails_is_spliced_executed_and_reflected_on() -> None:
    agent = slipping("detour", 3, helpless=True)
    result = calibrate(collect(agent), experts(1), make_env=make_corridor)
    (calibration,) = result.accepted
    assert calibration.repaired and "continued" in calibration.reason
    steps = calibration.trajectory.steps
    assert [s.source for s in steps[:5]] == ["expert"] * 3 + ["deviation", "reflection"]
    assert [s.trainable for s in steps] == [False] * 4 + [True] * (len(steps) - 4)
    assert calibration.trajectory.won
    assert steps[4].thought == calibration.reflection.text != ""
    assert calibration.reflection.source == "template"
    assert steps[4].turn_text() == f"Thought: {calibration.reflection.text}\nAction: go on"
    assert calibration.failed_continuation is not None and not calibration.failed_continuation.won
    assert calibration.failed_continuation.actions[3] == "detour"
    (part,) = result.expert_subtrajectories
    assert [s.trainable for s in part.trajectory.steps] == [False] * 3 + [True] * 3


def test_a_wait_is_spliced_without_repair() -> None:
    result = calibrate(collect(slipping("wait", 2, helpless=True)), experts(1), make_env=make_corridor)
    (calibration,) = result.accepted
    assert not calibration.repaired and calibration.reason == ""
    assert calibration.trajectory.actions == ("go on", "go on", "wait", "go on", "go on", "go on", "go on")


def test_every_accepted_calibration_replays_to_success() -> None:
    for wrong in ("detour", "wait", "lock"):
        result = calibrate(collect(slipping(wrong, 2, helpless=True)), experts(2), make_env=make_corridor)
        assert len(result.accepted) == 2
        requests = [
            EpisodeRequest(task_id=c.task_id, seed=c.trajectory.seed, script=c.trajectory.steps, max_agent_turns=0)
            for c in result.accepted
        ]
        for episode, calibration in zip(collect(slipping("x", 0)).run(requests), result.accepted, strict=True):
            assert episode.trajectory.won
            assert [s.observation for s in episode.trajectory.steps] == [
                s.observation for s in calibration.trajectory.steps
            ]


def test_without_a_reaching_expert_what_no_longer_fits_is_refused() -> None:
    def make() -> TextEnv:
        return TextEnv(FromStart(), horizon=14)

    agent = slipping("lock", 2, helpless=True)
    settings = CalibrationSettings(detect_fatal=False)
    result = calibrate(Collector(make, agent), experts(1), settings=settings, make_env=make)
    (calibration,) = result.calibrations
    assert calibration.status == "refused"
    assert "refused 'go on'" in calibration.reason and "'start'" in calibration.reason
    assert calibration.reflection.source == "none"
    repaired = calibrate(collect(agent), experts(1), make_env=make_corridor).accepted
    assert repaired[0].repaired and repaired[0].trajectory.actions[2:5] == ("lock", "unlock", "go on")


def test_a_win_after_another_action_is_kept_and_becomes_an_explored_success() -> None:
    result = calibrate(collect(slipping("detour", 3)), experts(1), make_env=make_corridor)
    (found,) = result.results
    assert found.calibrations == ()
    assert found.verdicts[3].verdict == "kept" and found.verdicts[3].note
    assert found.counts.num_won_anyway == 1 and found.counts.num_samples == 0
    (success,) = found.explored_successes
    assert success.won and success.actions[3] == "detour"
    assert [s.trainable for s in success.steps] == [False] * 3 + [True] * (len(success.steps) - 3)


def test_ties_are_counted_and_the_tie_rule_decides() -> None:
    # A wait costs nothing here: both values are 1, and no failure is asked for.
    for rule, deviated in (("kept", 0), ("deviated", 1)):
        settings = CalibrationSettings(tie_rule=rule, require_failure=False)  # type: ignore[arg-type]
        result = calibrate(collect(slipping("wait", 2)), experts(1), settings=settings, reward_settings=FIXED)
        assert result.counts.num_ties == 1
        assert result.counts.num_ties_deviated == deviated
        assert len(result.calibrations) == deviated
    tie = StepRewardSettings(same_state="tie")
    quick = calibrate(
        collect(slipping("wait", 2)),
        experts(1),
        settings=CalibrationSettings(require_failure=False),
        reward_settings=tie,
    )
    assert quick.counts.num_ties == 1 and quick.counts.num_samples == 0


@pytest.mark.parametrize("estimator", ["fixed", "racing"])
def test_the_greedy_rollout_can_count_as_an_outcome(estimator: str) -> None:
    counted, sampled = [], []
    for own in (False, True):
        rewards = StepRewardSettings(estimator=estimator, count_greedy_rollout=own)  # type: ignore[arg-type]
        result = calibrate(
            collect(slipping("wait", 2, helpless=True)),
            experts(1),
            settings=CalibrationSettings(require_failure=False, value_expert_step=False),
            reward_settings=rewards,
        )
        verdict = result.results[0].verdicts[2]
        assert verdict.verdict in ("deviated", "fatal") and verdict.explored_score == 0.0
        assert verdict.agent_reward is not None and verdict.agent_reward.outcomes[0] == 0.0
        counted.append(len(verdict.agent_reward.outcomes))
        sampled.append(result.counts.num_samples)
    assert counted[0] == counted[1] and sampled[1] == sampled[0] - 1


def test_the_estimator_reports_on_itself() -> None:
    agent = slipping("detour", 3, helpless=True)
    achieved = calibrate(collect(agent), experts(1)).estimator
    assert achieved["achieved_alpha"] <= 0.1 and achieved["achieved_beta"] <= 0.1
    critic = calibrate(collect(agent), experts(1), reward_settings=StepRewardSettings(estimator="critic"))
    assert critic.estimator["calibration_error"] == 1.0  # it has seen too little to be trusted
    assert calibrate(collect(agent), experts(1), reward_settings=FIXED).estimator == {}


def test_an_undecided_step_is_its_own_verdict() -> None:
    rewards = StepRewardSettings(max_samples=1)
    result = calibrate(collect(slipping("detour", 3, helpless=True)), experts(1), reward_settings=rewards)
    assert result.results[0].verdicts[3].verdict == "undecided"
    assert result.counts.num_undecided == 1 and result.calibrations == []
    by_mean = CalibrationSettings(undecided_rule="mean")
    # A race that cannot be decided is not begun, so that there is nothing to judge by.
    again = calibrate(
        collect(slipping("detour", 3, helpless=True)), experts(1), settings=by_mean, reward_settings=rewards
    )
    assert again.counts.num_undecided == 1


def test_the_first_steps_can_be_skipped() -> None:
    settings = CalibrationSettings(skip_first_steps=2)
    result = calibrate(collect(slipping("jump", 1)), experts(1), settings=settings, reward_settings=FIXED)
    assert [v.step for v in result.results[0].verdicts] == [2, 3, 4, 5]
    assert result.calibrations == []


def test_a_correction_is_explored_further_after_its_wrong_action() -> None:
    first = calibrate(collect(slipping("wait", 2, helpless=True)), experts(2), make_env=make_corridor)
    corrected = [c.trajectory for c in first.accepted]
    agent = slipping("detour", 3, helpless=True)
    explorations = explore(collect(agent), corrected, CalibrationSettings(round=1))
    assert [s.step for s in explorations[0].steps] == [3, 4, 5, 6]
    second = calibrate(collect(agent), corrected, settings=CalibrationSettings(round=1), make_env=make_corridor)
    for calibration in second.accepted:
        steps = calibration.trajectory.steps
        assert [s.action for s in steps[:5]] == ["go on", "go on", "wait", "go on", "detour"]
        assert [s.source for s in steps[:6]] == ["expert"] * 2 + ["deviation", "reflection", "deviation", "reflection"]
        assert [s.trainable for s in steps[:6]] == [False] * 5 + [True]
        assert calibration.trajectory.won and calibration.round == 1
    assert len(second.accepted) == 2
    for part in second.expert_subtrajectories:
        assert part.step >= 3 and not any(s.trainable for s in part.trajectory.steps[: part.step])


@pytest.mark.parametrize("wrong", ["detour", "jump"])
def test_leaving_out_what_cannot_decide_changes_no_decision(wrong: str) -> None:
    settings = CalibrationSettings(tie_rule="deviated", detect_fatal=False, value_expert_step=False)
    found = {}
    for skip in (False, True):
        rewards = StepRewardSettings(estimator="fixed", num_samples=3, skip_decided=skip)
        greedy, sampled = slipping(wrong, 3, helpless=True), slipping(wrong, 3, slip=0.1)

        def policy(request: TurnRequest, rng: random.Random, a: PolicyAgent = greedy, b: PolicyAgent = sampled) -> str:
            # Greedily it stays where its wrong action led; sampled it often comes back.
            return (a if request.sampling.temperature == 0 else b)._policy(request, rng)

        agent = PolicyAgent(policy)
        result = calibrate(
            collect(agent), experts(), settings=settings, reward_settings=rewards, make_env=make_corridor
        )
        verdicts = [[(v.step, v.verdict) for v in r.verdicts] for r in result.results]
        found[skip] = (verdicts, [c.calibration_id for r in result.results for c in r.calibrations])
        assert any(v == (3, "deviated") for r in verdicts for v in r)
        found[skip] += (result.counts.num_samples,)
    assert found[True][:2] == found[False][:2]
    assert found[True][2] <= found[False][2]
    if wrong == "jump":
        assert found[True][2] == 9 and found[False][2] == 18


def test_only_the_first_deviation_counts_and_later_ones_cost_nothing() -> None:
    def twice(request: TurnRequest, rng: random.Random) -> str:
        last = request.messages[-1].content
        if request.sampling.temperature == 0 and last.endswith(("room 1.", "room 4.")):
            return "jump"
        return request.expert_action or "wait"

    rewards = StepRewardSettings(lookahead=0)
    settings = CalibrationSettings(detect_fatal=False, value_expert_step=False)
    first = calibrate(collect(PolicyAgent(twice)), experts(1), settings=settings, reward_settings=rewards)
    assert [c.step for c in first.calibrations] == [1]
    assert [v.step for v in first.results[0].verdicts] == [0, 1]
    every = calibrate(
        collect(PolicyAgent(twice)),
        experts(1),
        settings=dataclasses.replace(settings, detector="every"),
        reward_settings=rewards,
    )
    assert [c.step for c in every.calibrations] == [1, 4]
    assert every.counts.num_samples == 2 * first.counts.num_samples


@pytest.mark.parametrize("estimator", ["fixed", "racing"])
def test_results_do_not_depend_on_how_many_run_at_once(estimator: str) -> None:
    rewards = StepRewardSettings(estimator=estimator, lookahead=0)  # type: ignore[arg-type]
    agent = slipping("detour", 3, slip=0.1, helpless=True)
    one = calibrate(collect(agent, num_envs=1), experts(4), reward_settings=rewards, make_env=make_corridor, seed=5)
    many = calibrate(collect(agent, num_envs=32), experts(4), reward_settings=rewards, make_env=make_corridor, seed=5)
    assert one == many


def test_a_killed_run_goes_on_where_it_stopped() -> None:
    agent, given = slipping("detour", 3, slip=0.1, helpless=True), experts(5)
    whole = calibrate(collect(agent, num_envs=1), given, make_env=make_corridor)
    kept: list[ExpertResult] = []

    def stop(result: ExpertResult) -> None:
        kept.append(result_from_json(result_to_json(result)))
        if len(kept) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(collect(agent, num_envs=1), given, make_env=make_corridor, on_result=stop)
    rest = calibrate(collect(agent, num_envs=1), given, make_env=make_corridor, done={r.expert_id for r in kept})
    assert len(rest.results) == 3
    assert sorted([*kept, *rest.results], key=lambda r: r.task_id) == list(whole.results)


def test_the_parts_can_be_called_one_by_one() -> None:
    collector, given = collect(slipping("wait", 2, helpless=True)), experts(2)
    settings = CalibrationSettings()
    explorations = explore(collector, given, settings)
    detections = detect(collector, explorations, settings, FIXED)
    assert [d.steps for d in detections] == [(2,), (2,)]
    deviations = [d.deviations[0] for d in detections]
    corrections = execute(collector, deviations, given)
    reflections = reflect(corrections, TemplateReflector())
    assert all(c.accepted for c in corrections)
    script = splice(deviations[0], reflections[0])
    assert [s.action for s in script] == list(corrections[0].trajectory.actions)
    assert script[3].thought == reflections[0].text


def test_the_ablation_draws_a_step_at_random() -> None:
    def other(request: TurnRequest, rng: random.Random) -> str:
        return "detour" if request.sampling.temperature == 0 else "go on"

    settings = CalibrationSettings(detector="random")
    steps = [
        c.step
        for seed in range(6)
        for c in calibrate(
            collect(PolicyAgent(other)),
            experts(3),
            settings=settings,
            seed=seed,
            make_env=make_corridor,
        ).calibrations
    ]
    assert len(steps) == 18 and len(set(steps)) > 2


def test_a_broken_expert_trajectory_is_data() -> None:
    (good,) = experts(1)
    other = dataclasses.replace(
        good,
        trajectory_id="",
        steps=(dataclasses.replace(good.steps[0], observation="elsewhere"), *good.steps[1:]),
    )
    short = dataclasses.replace(good, trajectory_id="", steps=good.steps[:-1])
    result = calibrate(collect(slipping("jump", 3)), [other, short, good])
    assert "replays differently at step 0" in result.results[0].error
    assert "does not win" in result.results[1].error
    assert result.results[2].error == "" and len(result.calibrations) == 1


def test_a_breaking_world_is_tried_again_and_then_given_up() -> None:
    class Fragile(Corridor):
        def act(self, action: str):  # type: ignore[no-untyped-def]
            if action == "lock":
                raise RuntimeError("boom")
            return super().act(action)

    def make() -> TextEnv:
        return TextEnv(Fragile(), horizon=14)

    result = calibrate(Collector(make, slipping("lock", 2)), experts(1), make_env=make)
    assert "boom" in result.results[0].error and "step 2" in result.results[0].error
    assert result.counts.num_failed_episodes == 1  # the last of three attempts is the one that is kept


def test_unreadable_turns_are_explored_like_any_other() -> None:
    def mumble(request: TurnRequest, rng: random.Random) -> str:
        muddled = any("# hm" in m.content for m in request.messages)
        greedy = request.sampling.temperature == 0
        if muddled or (greedy and request.messages[-1].content.endswith("room 4.")):
            return "# hm"
        return request.expert_action or "wait"

    (calibration,) = calibrate(collect(PolicyAgent(mumble)), experts(1), make_env=make_corridor).calibrations
    assert calibration.step == 4 and calibration.status == "accepted"
    assert not calibration.deviated.parsed
    assert calibration.trajectory.steps[4].turn_text() == "# hm"
    assert calibration.reflection.text.startswith("That was no action.")


def test_settings_refuse_what_cannot_work() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'deviated'"):
        CalibrationSettings(tie_rule="deviate")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="delta"):
        CalibrationSettings(delta=2.0)
    with pytest.raises(UnknownNameError, match="paper"):
        load_preset("papr")
    with pytest.raises(ConfigError, match="similarity"):
        explore(collect(slipping("jump", 3)), experts(1), load_preset("repo").calibration)
    together = StepRewardSettings(count_greedy_rollout=True)
    with pytest.raises(ConfigError, match="require_failure"):
        calibrate(collect(slipping("jump", 3)), experts(1), reward_settings=together)
    with pytest.raises(ConfigError, match="require_failure"):
        detect(collect(slipping("jump", 3)), [], CalibrationSettings(), together)
    with pytest.raises(UnknownNameError, match="did you mean 'compare'"):
        detect(collect(slipping("jump", 3)), [], CalibrationSettings(detector="compares"), FIXED)


def test_a_similarity_says_which_actions_are_the_same() -> None:
    settings = load_preset("repo").calibration
    (exploration,) = explore(
        collect(slipping("jump", 3)),
        experts(1),
        settings,
        similarity=lambda a, b: 0.96 if a == "jump" else 0.0,
    )
    assert all(s.same_action for s in exploration.steps)


def test_weights() -> None:
    settings = WeightSettings(weight=0.5, max_distance=0.4)
    assert calibration_weight(0.2, settings) == pytest.approx(1.1)
    assert exploration_weight(0.2, settings) == pytest.approx(0.9)
    assert exploration_weight(0.4, settings) is None
    assert exploration_weight(0.3, WeightSettings(weight=10)) == 0.0
    paper = load_preset("paper").weights
    assert (paper.weight, paper.max_distance, paper.max_distance_encoder) == (0.01, 0.013, "bert_cls")
    with pytest.raises(ConfigError, match="weight"):
        WeightSettings(weight=float("nan"))


def test_the_three_sets() -> None:
    given = experts(2)
    lost = calibrate(collect(slipping("detour", 3, helpless=True)), given, make_env=make_corridor)
    won = calibrate(collect(slipping("detour", 3)), given, make_env=make_corridor)

    def distance(a: object, b: object) -> float:
        return 0.25

    settings = WeightSettings(weight=0.4)
    samples = weighted_samples([*lost.results, *won.results], given, settings, distance=distance)
    assert (
        sorted((s.kind, round(s.weight, 3)) for s in samples)
        == [
            ("calibrated", 1.1),
            ("calibrated", 1.1),
            ("expert_subtrajectory", 1.1),
            ("expert_subtrajectory", 1.1),
            ("explored", 0.9),
            ("explored", 0.9),
        ]
        or [s.kind for s in samples].count("explored") == 2
    )
    only = weighted_samples(
        lost.results, given, dataclasses.replace(settings, expert_subtrajectories=False), distance=distance
    )
    assert {s.kind for s in only} == {"calibrated"}
    assert weighted_samples(lost.results, given, settings, distance=distance, approved=lambda c: False) == [
        s for s in samples if s.kind == "expert_subtrajectory"
    ]


def test_a_result_survives_json() -> None:
    result = calibrate(collect(slipping("detour", 3, slip=0.1, helpless=True)), experts(2), make_env=make_corridor)
    for found in result.results:
        assert result_from_json(result_to_json(found)) == found
    with pytest.raises(DataError, match="not a calibration result"):
        result_from_json("{}")
