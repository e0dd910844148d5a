"""The diagnosis is right on worlds that were built to be unsuited, and on one that is suited."""

import random

import pytest

from steca_gym.diagnosis import DiagnosisSettings, Share, diagnose
from steca_gym.env import Outcome, TextEnv
from steca_gym.errors import ConfigError, DataError
from tests.calibration_world import Corridor, PolicyAgent

TASKS = [f"walk-{i}" for i in range(12)]
EXPERT = PolicyAgent(lambda request, _: request.expert_action or "wait", name="expert")


def erring(*slips, rate=0.25):
    """Follows the expert, but for slips."""

    def policy(request, rng):
        action = request.expert_action or "wait"
        return rng.choice(slips) if rng.random() < rate else action

    return PolicyAgent(policy, name="erring")


def found_in(world, agent, expert=EXPERT, horizon=20, tasks=TASKS, num_experts=50, **more):
    def make():
        return TextEnv(world(), horizon=horizon)

    return diagnose(make, agent, expert, tasks, num_experts=num_experts, **more)


def codes(diagnosis):
    return [r.code for r in diagnosis.reasons]


class Long(Corridor):
    extra = ()
    """names of further parts of the state"""

    def __init__(self):
        super().__init__(tasks=12)

    def save(self):
        return super().save(), [getattr(self, name) for name in self.extra]

    def load(self, token):
        state, more = token
        super().load(state)
        for name, value in zip(self.extra, more, strict=True):
            setattr(self, name, value)

    def state_key(self):
        return super().state_key(), *(getattr(self, name) for name in self.extra)


class Short(Long):
    def act(self, action):
        outcome = super().act(action)
        if self._room >= 2 and not self._dead:
            return Outcome(observation="You are out.", score=1.0, won=True, over=True)
        return outcome


class Chance(Long):
    """The last door opens or stays shut for ever, by the seed alone."""

    extra = ("_lucky",)

    def start(self, task_id, seed):
        self._lucky = random.Random(f"{task_id}/{seed}").random() < 0.5
        return super().start(task_id, seed)

    def act(self, action):
        outcome = super().act(action)
        if outcome.won and not self._lucky:
            return Outcome(observation="The door stays shut.", score=0.0, over=True)
        return outcome


class Misleading(Long):
    """A detour pays at once and leads nowhere; the way to success pays nothing before its end."""

    extra = ("_detoured",)

    def start(self, task_id, seed):
        self._detoured = False
        return super().start(task_id, seed)

    def act(self, action):
        self._detoured = self._detoured or action == "detour"
        outcome = super().act(action)
        if self._detoured and not outcome.won:
            return Outcome(observation=outcome.observation, score=0.9, valid=outcome.valid)
        if self._detoured:
            return Outcome(observation="A wall.", score=0.9, over=True)
        if outcome.won:
            return Outcome(observation=outcome.observation, score=0.5, won=True, over=True)
        return outcome

    @property
    def score_may_fall(self):
        return True


class Boxes(Corridor):
    """A coin lies in one of eight boxes; nobody sees in which, and only one has to be opened, again and again."""

    def __init__(self):
        super().__init__(tasks=12)

    def start(self, task_id, seed):
        self._seed = random.Random(task_id).randrange(8)
        self._seen, self._count, self._held = set(), 0, False
        return Outcome(observation=f"{self.goal} There are boxes 0 to 7 and a door.")

    @property
    def goal(self):
        return "Take the coin out."

    def act(self, action):
        self._count += 1
        word, _, what = action.partition(" box ")
        if word == "open" and what.isdigit() and int(what) < 8:
            self._seen.add(int(what))
            return Outcome(observation="You see a coin." if int(what) == self._seed else "It is empty.")
        if word == "take" and what == str(self._seed) and self._seed in self._seen:
            self._held = True
            return Outcome(observation="You hold the coin.")
        if action in ("walk", "knock", "leave") and self._held:
            over = action == "leave"
            return Outcome(observation="You walk.", score=float(over), won=over, over=over)
        return Outcome(observation="Nothing happens.", valid=False)

    def admissible_actions(self):
        return (*(f"open box {i}" for i in range(8)), *(f"take box {i}" for i in sorted(self._seen)), "walk", "leave")

    def expert_action(self):
        if self._held:
            return "walk" if self._count < 5 else "leave"
        return f"take box {self._seed}" if self._seed in self._seen else f"open box {self._seed}"

    def expert_thought(self):
        return "here"

    def state_key(self):
        return (self._seed, tuple(sorted(self._seen)), self._count, self._held)

    def save(self):
        return (self._seed, tuple(sorted(self._seen)), self._count, self._held)

    def load(self, saved):
        self._seed, seen, self._count, self._held = saved
        self._seen = set(seen)

    def winnable(self):
        return True


class HonestBoxes(Boxes):
    def expert_action(self):
        if self._held or self._seed in self._seen:
            return super().expert_action()
        return f"open box {min(set(range(8)) - self._seen)}"


def test_a_world_with_a_pit_is_suited():
    found = found_in(Long, erring("jump", "wait"))
    assert found.verdict == "suited" and found.reasons == ()
    m = found.measures
    assert m.expert_won.value == 1.0 and m.repeatable.value == 1.0 and m.holds_under_other_seeds.value == 1.0
    assert m.lost_for_good.hits > 0 and m.rank_correlation > 0.1 and len(m.left_at) == m.left_path.hits
    assert "Verdict: suited" in found.lines()[0]


def test_two_steps_are_too_short():
    found = found_in(Short, erring("jump", "wait"))
    assert found.verdict == "not suited" and "too short" in codes(found)


def test_pure_chance_is_too_random():
    found = found_in(Chance, erring("jump", "wait"), settings=DiagnosisSettings(num_replays=6))
    assert found.verdict == "not suited" and "too random" in codes(found)


def test_values_that_mislead_are_found():
    found = found_in(Misleading, erring("detour", rate=0.3))
    assert found.verdict == "not suited" and "values disagree" in codes(found)


def test_mistakes_that_repair_themselves_need_no_correction():
    found = found_in(Long, erring("wait", "detour"), horizon=60)
    assert found.verdict == "not suited" and "always recoverable" in codes(found)


@pytest.mark.parametrize(("world", "expected"), [(Boxes, True), (HonestBoxes, False)])
def test_an_expert_that_knows_what_nobody_sees_is_found_out(world, expected):
    found = found_in(world, erring("leave", "walk", rate=0.3), horizon=24)
    assert ("clairvoyant expert" in codes(found)) == expected
    assert found.measures.search_found.count >= 12
    if expected:
        assert found.measures.search_found.value == 1.0 and found.measures.search_found_by_chance.value < 0.3


@pytest.mark.slow
def test_an_agent_that_never_wins_is_too_weak():
    found = found_in(Long, PolicyAgent(lambda request, _: "wait", name="idle"))
    assert found.verdict == "not suited" and codes(found) == ["agent too weak"]


def test_values_that_begin_late_ask_for_a_second_round():
    def policy(request, rng):
        last = request.messages[-1].content
        return (request.expert_action or "wait") if any(f"room {r}." in last for r in (4, 5)) else "jump"

    found = found_in(Long, PolicyAgent(policy, name="late"))
    assert found.verdict == "suited from round two" and codes(found) == ["values late only"]


@pytest.mark.slow
def test_the_forecast_holds_for_the_run():
    from steca_gym.calibration import calibrate
    from steca_gym.collectors import Collector, EpisodeRequest

    class Many(Corridor):
        def __init__(self):
            super().__init__(tasks=80)

    def make():
        return TextEnv(Many(), horizon=20)

    tasks = [f"walk-{i}" for i in range(80)]
    agent = erring("jump", "wait")
    found = diagnose(make, agent, EXPERT, tasks, num_experts=80, settings=DiagnosisSettings(num_tasks=20))
    requests = [EpisodeRequest(task_id=t, seed=i) for i, t in enumerate(tasks)]
    demos = [e.trajectory.with_id() for e in Collector(make, EXPERT).run(requests)]
    counts = calibrate(Collector(make, agent), demos, make_env=make).counts
    f = found.forecast
    for span, real in ((f.num_env_steps, counts.num_env_steps), (f.num_calibrations, counts.num_accepted)):
        assert span[1] <= real <= span[2], (span, real)


@pytest.mark.slow
def test_money_and_rounds_scale():
    once = found_in(Long, erring("jump"), num_experts=10, price_per_million_tokens=2.0)
    thrice = found_in(Long, erring("jump"), num_experts=10, num_rounds=3)
    assert thrice.forecast.num_env_steps[0] == pytest.approx(3 * once.forecast.num_env_steps[0])
    assert once.forecast.money[0] == pytest.approx(2e-6 * once.forecast.num_tokens[0]) and thrice.forecast.money is None


def test_what_cannot_be_measured_is_one_line():
    with pytest.raises(DataError, match="at least 2 tasks, got 1"):
        found_in(Long, EXPERT, tasks=["walk-0"])
    with pytest.raises(DataError, match="the expert 'idle' wins none of 12 tasks"):
        found_in(Long, EXPERT, expert=PolicyAgent(lambda request, _: "wait", name="idle"))
    for wrong in ({"num_tasks": 1}, {"num_continuations": 1}, {"temperature": 0.0}):
        with pytest.raises(ConfigError):
            DiagnosisSettings(**wrong)
    assert str(Share(0, 0)) == "not measured" and Share(0, 0).value is None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_answer():
    one, other = (found_in(Long, erring("jump", "wait")).as_dict() for _ in range(2))
    one["forecast"].pop("hours"), other["forecast"].pop("hours")
    assert one == other
