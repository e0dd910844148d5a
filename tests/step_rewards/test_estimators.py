"""Sequential comparison, estimators and their error rates under continuous looking."""

import math
import random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steca_gym.collectors.episodes import Fork
from steca_gym.env import Outcome, Snapshot
from steca_gym.errors import AgentError, ConfigError, UnknownNameError
from steca_gym.step_rewards import (
    Comparison,
    Evidence,
    Race,
    StateValue,
    StepRewards,
    StepRewardSettings,
    ValueCache,
    confidence_sequence,
    make_step_rewards,
    wilson,
)
from steca_gym.step_rewards.critic import CriticRewards, LogisticRidge, calibration_error
from steca_gym.step_rewards.estimators import Example, successes
from steca_gym.trajectory import Step, Trajectory

RATES = {"alpha": 0.05, "beta": 0.1, "min_effect": 0.3}


def fork(action: str = "go", observation: str = "here") -> Fork:
    last = Outcome(observation=observation)
    return Fork(
        fork_id=action,
        snapshot=Snapshot(fingerprint="f", task_id="t", world_seed=0, num_steps=1, last=last, token=None, trail=None),
        prefix=Trajectory(
            task_id="t", first_observation="Find it.", steps=(Step(action=action, observation=observation),)
        ),
    )


def comparison(**exact: float | None) -> Comparison:
    return Comparison(
        step=0,
        expert=StateValue(fork("go"), exact=exact.get("expert")),
        agent=StateValue(fork("jump"), exact=exact.get("agent")),
        token="t/0",
    )


def feed(rewards: StepRewards, c: Comparison, p: float, q: float, rng: random.Random, order: str = "kept") -> str:
    """Play the loop of the protocol; returns the verdict."""
    rewards.begin([c])
    while (decision := rewards.decide(c)) is None:
        todo = [
            (value, i, mean)
            for value, n, mean in zip((c.expert, c.agent), rewards.wanted(c), (p, q), strict=True)
            for i in range(n)
            if value.exact is None and not value.has(i)
        ]
        assert todo, "neither decided nor asking"
        if order == "shuffled":
            rng.shuffle(todo)
        for value, i, mean in todo:
            outcome = float(rng.random() < mean)
            value.add(i, outcome)
    return decision.verdict


# -- the sequential test ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rise", [False, True])
@pytest.mark.parametrize("shift", [-0.6, -0.3, 0.0, 0.1])
def test_the_evidence_does_not_grow_on_average_anywhere_in_the_null(rise: bool, shift: float) -> None:
    """The exact expectation of every bet of the mixture, over a grid of the null, for Bernoulli outcomes."""
    evidence = Evidence(shift, rise=rise)
    bets = {(x, y): np.exp(evidence._factors(x, y)) for x in (0.0, 1.0) for y in (0.0, 1.0)}
    assert min(float(b.min()) for b in bets.values()) >= 0
    for p in np.linspace(0, 1, 21):
        for q in np.linspace(0, 1, 21):
            if (q <= p + shift) if rise else (q >= p + shift):
                mean = sum((p if x else 1 - p) * (q if y else 1 - q) * bet for (x, y), bet in bets.items())
                assert float(np.max(mean)) <= 1 + 1e-9, (p, q)


@settings(max_examples=60, deadline=None)
@given(
    shift=st.floats(-0.9, 0.9),
    rise=st.booleans(),
    xs=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    p=st.floats(0, 1),
)
def test_bets_are_never_negative(shift: float, rise: bool, xs: list[float], p: float) -> None:
    evidence = Evidence(shift, rise=rise)
    for x in xs:
        evidence.add(x, p)
        assert not math.isnan(evidence.log_value)
        assert evidence.log_value < math.inf


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_error_rates_hold_under_continuous_looking(p: float) -> None:
    """At the boundary of each null and looking after every pair, far beyond the usual truncation."""
    rng, runs, pairs = np.random.default_rng(7), 300, 120
    effect = RATES["min_effect"]

    def decided(q: float) -> str | None:
        race = Race(delta=0.0, max_pairs=pairs, curtail=False, **RATES)
        x, y = rng.random(pairs) < p, rng.random(pairs) < q
        for a, b in zip(x, y, strict=True):
            race.add(float(a), float(b))
            if race.decision is not None:
                break
        return race.decision

    equal = [decided(p) for _ in range(runs)]
    # Three standard errors of a share of 300 runs.
    assert equal.count("deviated") / runs <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    if p > effect:
        lower = [decided(p - effect) for _ in range(runs)]
        assert lower.count("kept") / runs <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / runs)
    # What a fixed-size test at 5 % would do when looked at after every pair. It is why none is used.
    if p == 0.5:
        n = np.arange(1, pairs + 1)
        naive = 0
        for x, y in ((rng.random(pairs) < p, rng.random(pairs) < p) for _ in range(100)):
            gap = (np.cumsum(x) - np.cumsum(y)) / n
            naive += bool((gap > 1.645 * np.sqrt(0.5 / n))[5:].any())
        assert naive / 100 > 0.15


def test_power_where_the_drop_is_clear() -> None:
    rng = random.Random(3)
    races = []
    for _ in range(200):
        race = Race(delta=0.0, max_pairs=20, **RATES)
        while race.decision is None:
            race.add(float(rng.random() < 0.9), float(rng.random() < 0.1))
        races.append(race)
    assert sum(r.decision == "deviated" for r in races) >= 196
    assert np.mean([r.num_pairs for r in races]) < 7


def test_the_clearest_case_takes_three_pairs_and_a_hopeless_one_none() -> None:
    race = Race(delta=0.0, max_pairs=20, **RATES)
    assert race.fewest_pairs_left() <= 3
    for _ in range(3):
        race.add(1.0, 0.0)
    assert race.decision == "deviated"
    assert Race(delta=0.0, max_pairs=1, **RATES).decision == "undecided"


def test_a_race_stops_when_the_rest_cannot_decide_it() -> None:
    race = Race(delta=0.0, max_pairs=20, **RATES)
    outcomes = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
    while race.decision is None:
        race.add(*outcomes[race.num_pairs % 4])
    assert race.decision == "undecided" and race.num_pairs < 20


@pytest.mark.parametrize("delta", [-0.1, 0.0, 0.2])
def test_delta_moves_the_boundary(delta: float) -> None:
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(300):
        race = Race(delta=delta, max_pairs=60, curtail=False, **RATES)
        for a, b in zip(rng.random(60) < 0.5, rng.random(60) < 0.5 + delta, strict=True):
            race.add(float(a), float(b))
            if race.decision is not None:
                break
        wrong += race.decision == "deviated"
    assert wrong / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_a_confidence_sequence_covers_at_every_size_at_once() -> None:
    rng = np.random.default_rng(5)
    missed = 0
    for _ in range(60):
        outcomes = (rng.random(40) < 0.7).astype(float)
        intervals = [confidence_sequence(outcomes[:n].tolist(), 0.9) for n in range(1, 41)]
        missed += any(not low <= 0.7 <= high for low, high in intervals)
    assert missed / 60 <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 60)
    assert confidence_sequence([]) == (0.0, 1.0)
    low, high = confidence_sequence([1.0] * 20)
    assert low > 0.6 and high == 1.0


# -- racing


def test_an_outcome_between_counts_with_its_probability() -> None:
    value = StateValue(fork(), token="x")
    for i in range(2000):
        value.add(i, 0.3)
    drawn = successes(value, 2000)
    assert abs(sum(drawn) / 2000 - 0.3) < 0.04 and drawn == successes(value, 2000)
    assert successes(StateValue(fork(), outcomes=[1.0, 0.0]), 5) == [1.0, 0.0]
    assert successes(StateValue(fork(), exact=0.4), 2) == [0.4, 0.4]


def test_outcomes_that_are_known_already_are_used_before_any_is_asked_for() -> None:
    rewards = make_step_rewards(StepRewardSettings())
    c = comparison()
    for i in range(20):
        c.expert.add(i, 1.0)
        c.agent.add(i, 0.0)
    decision = rewards.decide(c)
    assert decision is not None and decision.verdict == "deviated"
    assert decision.agent is not None and 0 < len(decision.agent.outcomes) < 6


# -- values -----------------------------------------------------------------------------------------------------


@given(st.permutations(range(8)))
def test_outcomes_are_used_in_the_order_of_asking(order: list[int]) -> None:
    value = StateValue(fork())
    done: set[int] = set()
    for i in order:
        value.add(i, i / 10)
        value.add(i, 0.99)  # a second answer to the same question changes nothing
        done.add(i)
        gapless = next(k for k in range(9) if k not in done)
        assert value.outcomes == [k / 10 for k in range(gapless)]
        assert all(value.has(k) for k in done)


def test_a_cache_finds_a_state_again() -> None:
    cache = ValueCache()
    first = cache.get("a", fork(), None, "x")
    assert cache.get("a", fork(), None, "y") is first and cache.num_hits == 1
    assert cache.get("b", fork(), None, "x") is not first
    assert cache.get(None, fork(), None, "x") is not cache.get(None, fork(), None, "x")


def test_wilson_against_a_textbook_value() -> None:
    low, high = wilson(0.8, 5)
    assert low == pytest.approx(0.3755, abs=1e-3) and high == pytest.approx(0.9638, abs=1e-3)
    assert wilson(0.0, 0) == (0.0, 1.0)


# -- estimators -------------------------------------------------------------------------------------------------


def test_fixed_uses_n_samples_and_reports_ties() -> None:
    rewards = make_step_rewards(StepRewardSettings(estimator="fixed", num_samples=5))
    c = comparison()
    assert feed(rewards, c, 1.0, 0.0, random.Random(0)) == "deviated"
    assert len(c.expert.outcomes) == len(c.agent.outcomes) == 5
    assert feed(rewards, comparison(), 1.0, 1.0, random.Random(0)) == "tie"
    assert feed(rewards, comparison(), 0.0, 1.0, random.Random(0)) == "kept"


@pytest.mark.parametrize("estimator", ["fixed", "racing"])
def test_exact_values_need_no_samples(estimator: str) -> None:
    rewards = make_step_rewards(StepRewardSettings(estimator=estimator))  # type: ignore[arg-type]
    assert feed(rewards, comparison(expert=1.0, agent=0.0), 0, 0, random.Random(0)) == "deviated"
    assert feed(rewards, comparison(expert=1.0, agent=1.0), 0, 0, random.Random(0)) == "tie"
    half = comparison(agent=0.0)
    assert feed(rewards, half, 1.0, 0.0, random.Random(0)) == "deviated"
    assert half.agent.outcomes == []


def test_racing_samples_no_more_than_the_decision_needs() -> None:
    rewards = make_step_rewards(StepRewardSettings(test="pairs"))
    c = comparison()
    assert feed(rewards, c, 1.0, 0.0, random.Random(0)) == "deviated"
    assert len(c.expert.outcomes) == len(c.agent.outcomes) == 3
    c = comparison()
    assert feed(make_step_rewards(StepRewardSettings()), c, 1.0, 0.0, random.Random(0)) == "deviated"
    assert len(c.expert.outcomes) == len(c.agent.outcomes) == 3


@pytest.mark.parametrize("test", ["ratio", "pairs"])
def test_racing_does_not_depend_on_the_order_of_finishing(test: Literal["ratio", "pairs"]) -> None:
    for seed in range(30):
        outcomes = []
        for order in ("kept", "shuffled"):
            rewards = make_step_rewards(StepRewardSettings(test=test))
            c, draws = comparison(), random.Random(seed)
            table = [(float(draws.random() < 0.8), float(draws.random() < 0.4)) for _ in range(40)]
            shuffle = random.Random(seed + 1)
            while (decision := rewards.decide(c)) is None:
                todo = [
                    (v, i, table[i][arm])
                    for arm, (v, n) in enumerate(zip((c.expert, c.agent), rewards.wanted(c), strict=True))
                    for i in range(n)
                    if not v.has(i)
                ]
                if order == "shuffled":
                    shuffle.shuffle(todo)
                value, i, outcome = todo[0]
                value.add(i, outcome)
            outcomes.append((decision.verdict, decision.expert, decision.agent))
        assert outcomes[0] == outcomes[1]


def test_a_broken_state_is_undecided() -> None:
    for name in ("fixed", "racing"):
        rewards = make_step_rewards(StepRewardSettings(estimator=name))  # type: ignore[arg-type]
        c = comparison()
        c.agent.broken = "the world crashed"
        decision = rewards.decide(c)
        assert decision is not None and decision.verdict == "undecided"


def test_the_critic_learns_to_decide_without_samples_and_states_its_error() -> None:
    s = StepRewardSettings(estimator="critic", num_samples=6, critic_min_states=20)
    critic = CriticRewards(s, 0.0)
    rng = random.Random(1)

    def pair(k: int) -> Comparison:
        return Comparison(
            step=0,
            expert=StateValue(fork(f"go to room {k % 5}", "a light room")),
            agent=StateValue(fork(f"jump off cliff {k % 5}", "a dark pit")),
            token=str(k),
        )

    examples = []
    for k in range(30):
        c = pair(k)
        feed(critic, c, 0.95, 0.05, rng)
        examples += [Example(v.fork.prefix, tuple(v.outcomes)) for v in (c.expert, c.agent)]
    assert critic.num_decided == 0  # it learns between blocks only, whatever has come in
    critic.learn([*examples, *examples])  # equal states count once
    assert critic.report()["num_states"] == 10
    assert critic.calibration_error == 1.0
    s = StepRewardSettings(estimator="critic", num_samples=6, critic_min_states=10)
    critic = CriticRewards(s, 0.0)
    critic.learn(examples)
    assert critic.calibration_error < 0.25
    assert critic.report()["calibration_error"] == critic.calibration_error
    fresh = pair(3)
    critic.begin([fresh])
    assert critic.wanted(fresh) == (0, 0)
    decision = critic.decide(fresh)
    assert decision is not None and decision.verdict == "deviated"
    assert decision.agent is not None and decision.agent.outcomes == ()


def test_logistic_ridge_recovers_probabilities() -> None:
    rng = np.random.default_rng(0)
    x = np.zeros((60, 1024))
    x[np.arange(60), np.arange(60) % 3] = 1.0
    truth = np.array([0.1, 0.5, 0.9])[np.arange(60) % 3]
    model = LogisticRidge(penalty=0.05)
    model.fit(x, rng.binomial(40, truth) / 40, np.full(60, 40.0))
    assert np.abs(model.predict(x[:3]) - [0.1, 0.5, 0.9]).max() < 0.06
    assert calibration_error([0.0, 1.0] * 10, [0.0, 1.0] * 10) == 0.0
    assert calibration_error([1.0] * 10, [0.0] * 10) == 1.0


class TableJudge:
    name = "table"

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def values(self, prefixes: list[Trajectory]) -> list[float]:
        return self._values[: len(prefixes)]


def test_a_judge_decides_without_samples_and_is_checked() -> None:
    s = StepRewardSettings(estimator="judge")
    assert feed(make_step_rewards(s, judge=TableJudge(0.9, 0.2)), comparison(), 0, 0, random.Random(0)) == "deviated"
    assert feed(make_step_rewards(s, judge=TableJudge(0.5, 0.5)), comparison(), 0, 0, random.Random(0)) == "tie"
    with pytest.raises(AgentError, match="2 numbers"):
        make_step_rewards(s, judge=TableJudge(3.0, 0.1)).begin([comparison()])
    with pytest.raises(ConfigError, match="needs a judge"):
        make_step_rewards(s)


def test_settings_refuse_what_cannot_work() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'racing'"):
        StepRewardSettings(estimator="race")  # type: ignore[arg-type]
    for wrong in ({"alpha": 0.0}, {"min_effect": 1.5}, {"num_samples": 0}, {"lookahead": -1}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            StepRewardSettings(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="equal continuations"):
        StepRewardSettings(estimator="fixed", temperature=0.0)
    with pytest.raises(UnknownNameError, match="detector=random"):
        StepRewardSettings(estimator="random")  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match="test=ratio"):
        StepRewardSettings(test="mixture")  # type: ignore[arg-type]
