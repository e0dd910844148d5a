"""What a verdict rests on: comparisons that were made, continuations that ended, values in their right places."""

from __future__ import annotations

import random
from typing import Any

import pytest

from steca_gym.agent import TurnRequest
from steca_gym.calibration import (
    CalibrationSettings,
    ExpertResult,
    StepRewardSettings,
    calibrate,
    result_from_json,
    result_to_json,
)
from steca_gym.collectors.collector import Collector
from steca_gym.collectors.episodes import Episode, EpisodeRequest, EpisodeSource
from steca_gym.env import TextEnv
from tests.calibration.test_pipeline import collect, experts, slipping
from tests.calibration_world import LENGTH, Corridor, PolicyAgent, make_corridor

FIXED = StepRewardSettings(estimator="fixed", num_samples=5)


def history(request: TurnRequest) -> list[str]:
    return [m.content.rsplit("Action: ", 1)[-1] for m in request.messages if m.role == "assistant"]


# -- compared or not ---------------------------------------------------------------------------------------------------


def test_a_step_whose_expert_state_was_never_sampled_is_not_called_compared() -> None:
    """The demo's settings: one sample after the agent's action decides, the expert's state is left alone."""
    settings = CalibrationSettings(tie_rule="deviated", value_expert_step=False)
    rewards = StepRewardSettings(estimator="fixed", num_samples=1, skip_decided=True)
    agent = slipping("detour", 0, helpless=True)
    result = calibrate(collect(agent), experts(2), settings=settings, reward_settings=rewards, make_env=make_corridor)
    for found in result.results:
        verdict = found.verdicts[0]
        assert verdict.verdict == "deviated" and verdict.expert_reward is None
        assert verdict.basis == "agent_value" and not verdict.compared
        assert "not sampled" in verdict.note
    counts = result.counts
    assert counts.num_compared == counts.num_ties == counts.num_decided == 0
    assert counts.num_not_compared == counts.num_not_compared_deviated == 2
    assert counts.num_first_step_deviated == 2
    lines = " ".join(counts.lines("deviated"))
    assert "of 0 compared steps, 0 decided by samples" in lines
    assert "2 steps not compared (the expert's state was not sampled), 2 of them deviations" in lines
    assert "2 deviations at step 0" in lines


def test_a_compared_step_counts_by_what_decided_it() -> None:
    result = calibrate(collect(slipping("detour", 3, helpless=True)), experts(1), make_env=make_corridor)
    counts = result.counts
    assert (counts.num_compared, counts.num_decided, counts.num_not_compared) == (1, 1, 0)
    assert result.results[0].verdicts[3].compared and counts.num_first_step_deviated == 0


# -- cut continuations -------------------------------------------------------------------------------------------------


def slow(dawdle: int) -> PolicyAgent:
    """Greedily waits in room 3 and then dawdles before it continues to win; sampled, it follows the expert."""

    def policy(request: TurnRequest, rng: random.Random) -> str:
        past = history(request)
        if "wait" in past and past.count("wait") < dawdle:
            return "wait"
        if (
            "wait" not in past
            and request.sampling.temperature == 0
            and request.messages[-1].content.endswith("room 3.")
        ):
            return "wait"
        return request.expert_action or "wait"

    return PolicyAgent(policy)


def far(horizon: int = 40) -> TextEnv:
    return TextEnv(Corridor(), horizon=horizon)


SHORT = {"max_steps": 5, "max_length_ratio": None}


def test_cut_continuations_alone_make_no_deviation() -> None:
    # After its wait the agent dawdles for nine turns and then wins: every continuation of five turns is cut, none lost.
    rewards = StepRewardSettings(estimator="fixed", num_samples=3, **SHORT)  # type: ignore[arg-type]
    for require_failure in (True, False):
        settings = CalibrationSettings(max_steps=5, require_failure=require_failure)
        result = calibrate(
            Collector(far, slow(9)), experts(1), settings=settings, reward_settings=rewards, make_env=far
        )
        verdict = result.results[0].verdicts[3]
        assert verdict.verdict in ("kept", "tie"), require_failure
        assert result.calibrations == []
        assert result.counts.num_cut > 0 and result.counts.num_played_on > 0
    reference = StepRewardSettings(estimator="fixed", num_samples=3, cut="lost", **SHORT)  # type: ignore[arg-type]
    settings = CalibrationSettings(max_steps=5, detect_fatal=False)
    lost = calibrate(Collector(far, slow(9)), experts(1), settings=settings, reward_settings=reference, make_env=far)
    assert lost.results[0].verdicts[3].verdict == "deviated" and lost.counts.num_played_on == 0


@pytest.mark.parametrize("estimator", ["fixed", "racing"])
def test_what_is_lost_for_good_deviates_after_it_was_played_on(estimator: str) -> None:
    rewards = StepRewardSettings(estimator=estimator, num_samples=3, **SHORT)  # type: ignore[arg-type]
    settings = CalibrationSettings(max_steps=5)
    agent = slipping("wait", 3, helpless=True)
    result = calibrate(Collector(far, agent), experts(1), settings=settings, reward_settings=rewards, make_env=far)
    (calibration,) = result.accepted
    verdict = calibration.verdicts[-1]
    assert verdict.verdict in ("deviated", "fatal") and verdict.agent_reward is not None
    assert verdict.agent_reward.num_cut == 0 and max(verdict.agent_reward.outcomes) == 0
    assert calibration.failed_continuation is not None and calibration.failed_continuation.status == "truncated"
    # Played on with the seed that it had: the same as never having been cut.
    whole = StepRewardSettings(estimator=estimator, num_samples=3, max_length_ratio=None)  # type: ignore[arg-type]
    uncut = calibrate(Collector(far, agent), experts(1), settings=settings, reward_settings=whole, make_env=far)
    assert uncut.accepted[0].trajectory == calibration.trajectory


# -- D_s ---------------------------------------------------------------------------------------------------------------


def table_agent(chances: dict[int, float], wrong_at: int, after_wrong: float) -> PolicyAgent:
    """Greedily waits forever in one room; sampled, it wins from room n by chances[n], after its wait by another."""

    def policy(request: TurnRequest, rng: random.Random) -> str:
        past = history(request)
        if request.sampling.temperature == 0:
            here = f"room {wrong_at}." in request.messages[-1].content
            return "wait" if here or "wait" in past else request.expert_action or "wait"
        start = next((i for i, a in enumerate(past) if a == "give up" or a == "unlock"), None)
        if start is not None:
            return "wait"
        decided = random.Random(f"{request.seed}").random()
        chance = after_wrong if "wait" in past else chances.get(STARTS[request.fork_of or ""], 1.0)
        return (request.expert_action or "wait") if decided < chance else "unlock"

    return PolicyAgent(policy)


STARTS: dict[str, int] = {}


class Watching(Collector):
    """A collector that notes how many steps stand before each fork."""

    def drive(self, source: EpisodeSource) -> None:
        class Noting:
            def next_request(self) -> EpisodeRequest | None:
                request = source.next_request()
                if request is not None and request.start is not None:
                    STARTS[request.start.fork_id] = len(request.start.prefix)
                return request

            def finished(self, episode: Episode) -> None:
                source.finished(episode)

        super().drive(Noting())


def subtrajectory_steps(agent: PolicyAgent, **settings: Any) -> list[int]:
    rewards = StepRewardSettings(estimator="fixed", num_samples=40)
    result = calibrate(
        Watching(make_corridor, agent),
        experts(1),
        settings=CalibrationSettings(**settings),
        reward_settings=rewards,
        make_env=make_corridor,
    )
    assert result.results[0].error == ""
    return [part.step for part in result.expert_subtrajectories]


def test_a_lifted_tie_does_not_put_a_step_into_the_set_of_expert_subtrajectories() -> None:
    # All values are 0: with tie_rule=deviated the step deviates, yet the expert's action is worth no more.
    nothing = dict.fromkeys(range(LENGTH), 0.0)
    agent = table_agent(nothing, wrong_at=2, after_wrong=0.0)
    assert subtrajectory_steps(agent, tie_rule="deviated") == []


def test_a_step_where_the_experts_own_action_is_worth_less_stays_out() -> None:
    # r(s_t, a_t) = 0.2 against r(s_t, a_hat_t) = 0.4 and 0.9 before: deviated, yet the expert's action is no better.
    agent = table_agent({2: 0.9, 3: 0.2}, wrong_at=2, after_wrong=0.4)
    assert subtrajectory_steps(agent) == []
    better = table_agent({2: 0.9, 3: 0.9}, wrong_at=2, after_wrong=0.4)
    assert subtrajectory_steps(better) == [2]


def test_the_last_steps_reward_is_the_outcome() -> None:
    # At the last step the expert's reward is 1, however weak the agent is; the agent's action is worth 0.6.
    last = LENGTH - 1
    agent = table_agent({last: 0.95}, wrong_at=last, after_wrong=0.6)
    assert subtrajectory_steps(agent) == [last]


# -- order and resumption ----------------------------------------------------------------------------------------------


class Shuffled:
    """A collector that plays a batch of requests and hands the episodes back in another order."""

    def __init__(self, collector: Collector, seed: int, width: int = 6) -> None:
        self._collector, self._rng, self._width = collector, random.Random(seed), width

    def drive(self, source: EpisodeSource) -> None:
        under_way: list[Episode] = []
        while True:
            while len(under_way) < self._width and (request := source.next_request()) is not None:
                under_way += self._collector.run([request])
            if not under_way:
                return
            source.finished(under_way.pop(self._rng.randrange(len(under_way))))


def stumbling(request: TurnRequest, rng: random.Random) -> str:
    if request.expert_action is None:
        return "wait"
    if request.sampling.temperature == 0:
        where = sum(map(ord, request.messages[-1].content)) + len(request.messages)
        return ["go on", "detour", "lock", "go on", "wait"][where % 5]
    return rng.choices([request.expert_action, "detour", "lock", "wait"], [8, 1, 1, 1])[0]


def judged(result: Any) -> list[Any]:
    """What must not depend on the order: all but who paid for a shared sample."""
    return [(r.expert_id, r.verdicts, r.calibrations, r.explored_successes, r.expert_subtrajectories) for r in result]


@pytest.mark.parametrize("reuse", ["history", "state"])
@pytest.mark.parametrize("estimator", ["racing", "fixed", "critic"])
def test_results_do_not_depend_on_the_order_in_which_episodes_finish(estimator: str, reuse: str) -> None:
    rewards = StepRewardSettings(
        estimator=estimator,  # type: ignore[arg-type]
        reuse=reuse,  # type: ignore[arg-type]
        max_length_ratio=1.0,
        num_samples=3,
        critic_min_states=4,
        max_samples=10,
    )
    found = [
        judged(
            calibrate(
                Shuffled(Collector(make_corridor, PolicyAgent(stumbling)), seed),
                experts(6),
                settings=CalibrationSettings(require_failure=False),
                reward_settings=rewards,
                make_env=make_corridor,
            ).results
        )
        for seed in range(3)
    ]
    assert found[0] == found[1] == found[2]
    assert any(v.compared for r in found[0] for v in r[1])


@pytest.mark.parametrize("estimator", ["racing", "critic"])
def test_a_killed_run_ends_as_an_uninterrupted_one(estimator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steca_gym.step_rewards.critic.CriticRewards.block_size", 2)
    rewards = StepRewardSettings(estimator=estimator, num_samples=3, critic_min_states=4, max_samples=10)  # type: ignore[arg-type]
    common: dict[str, Any] = {
        "settings": CalibrationSettings(require_failure=False),
        "reward_settings": rewards,
        "make_env": make_corridor,
    }
    given = experts(6)
    whole = calibrate(Collector(make_corridor, PolicyAgent(stumbling)), given, **common)
    kept: list[ExpertResult] = []

    def stop(result: ExpertResult) -> None:
        kept.append(result_from_json(result_to_json(result)))
        if len(kept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(Shuffled(Collector(make_corridor, PolicyAgent(stumbling)), 7), given, on_result=stop, **common)
    done = {r.expert_id for r in kept}
    rest = calibrate(Collector(make_corridor, PolicyAgent(stumbling)), given, done=done, earlier=kept, **common)
    by_id = {r.expert_id: r for r in [*kept, *rest.results]}
    assert judged(by_id[r.expert_id] for r in whole.results) == judged(whole.results)


def test_an_estimator_that_learns_asks_for_the_stored_results() -> None:
    rewards = StepRewardSettings(estimator="critic")
    given = experts(2)
    with pytest.raises(Exception, match="pass them as earlier="):
        calibrate(collect(slipping("wait", 2)), given, reward_settings=rewards, done={given[0].trajectory_id})
