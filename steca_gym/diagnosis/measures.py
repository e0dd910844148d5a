"""What is measured: horizon, chance, how the agent leaves the expert's path, values, and what the expert knows.

Everything is played by a collector, so that it works for any world with an expert and any agent. Shares carry their
counts: twelve tasks are few, and the interval says so.
"""

from __future__ import annotations

import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from steca_gym.agent import GREEDY, Agent, Prompt, Sampling, TurnFormat
from steca_gym.calibration import CalibrationSettings, ExpertResult, calibrate
from steca_gym.calibration.exploration import normal_action
from steca_gym.calibration.repair import bare_env
from steca_gym.collectors import Collector
from steca_gym.collectors.episodes import Episode, EpisodeRequest, Fork
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError, DataError
from steca_gym.seeding import derive_seed
from steca_gym.statistics import wilson
from steca_gym.step_rewards import StepRewardSettings
from steca_gym.trajectory import Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagnosisSettings:
    """How much is probed. The defaults play some 50 episodes and 350 continuations."""

    num_tasks: int = 12
    """tasks that are probed, >= 2; each is demonstrated and played by the agent, greedily and at a temperature"""
    num_replays: int = 3
    """times that a demonstration's actions are played again under other seeds, >= 1"""
    num_continuations: int = 6
    """continuations per probed state, >= 2"""
    num_alternatives: int = 6
    """other actions of the expert's kind that are tried where it looks for something, >= 2"""
    temperature: float = 1.0
    """of sampled episodes and continuations, > 0"""
    max_new_tokens: int = 64
    """tokens per turn, >= 1"""
    seed: int = 0
    """decides tasks and samples"""

    def __post_init__(self) -> None:
        """Refuse counts that measure nothing."""
        least = {"num_tasks": 2, "num_replays": 1, "num_continuations": 2, "num_alternatives": 2, "max_new_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be > 0, got {self.temperature}")


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a count, with its 95 % Wilson interval."""

    hits: float
    count: int

    @property
    def value(self) -> float | None:
        """In [0, 1]; None where nothing was counted."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high)."""
        return wilson(self.hits, self.count) if self.count else (0.0, 1.0)

    def __str__(self) -> str:
        """For a person."""
        if not self.count:
            return "not measured"
        low, high = self.interval
        return f"{100 * self.hits / self.count:.0f} % ({100 * low:.0f} to {100 * high:.0f} %, n = {self.count})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What the probes found."""

    expert_steps: tuple[int, ...]
    """lengths of the demonstrations"""
    expert_won: Share
    expert_says_clairvoyant: bool
    """what the expert says of itself"""
    repeatable: Share
    """replays of a demonstration under its own seed that gave the same texts"""
    holds_under_other_seeds: Share
    """replays under other seeds, from an equal beginning, that won as well; not counted where the start differs"""
    agent_won: Share
    """the agent's greedy episodes"""
    left_path: Share
    """the agent's episodes, greedy and sampled, that left the demonstration's actions"""
    recovered: Share
    """of those that left it, the ones that won all the same"""
    lost_for_good: Share
    """states after leaving from which no continuation won, of those before which one did"""
    left_at: tuple[int, ...]
    """0-based steps at which episodes left the path"""
    values_early: Share
    """continuations from the first third of the demonstrations that won"""
    values_late: Share
    """from their last third"""
    rank_correlation: float | None
    """Spearman's, between the estimated value of a state and the share of other, unlimited continuations that won;
    None: either is constant"""
    num_states: int
    """states that it is taken over"""
    value_deviation: float
    """root mean square standard error of a state's estimated value"""
    search_found: Share
    """searching steps of the expert that found what the task is about"""
    search_found_by_chance: Share
    """the same for other actions of the same kind in the same states"""
    results: tuple[ExpertResult, ...]
    """what a calibration of the probed demonstrations found, under the given settings"""
    seconds_per_token: float
    """wall time of that calibration by sampled token; nan where none was sampled"""

    @property
    def ties(self) -> Share:
        """Compared steps whose values were equal."""
        counts = [r.counts for r in self.results]
        return Share(sum(c.num_ties for c in counts), sum(c.num_compared for c in counts))


def measure(
    make_env: Callable[[], TextEnv],
    agent: Agent,
    expert: Agent,
    task_ids: Sequence[str],
    *,
    settings: DiagnosisSettings | None = None,
    calibration: CalibrationSettings | None = None,
    step_rewards: StepRewardSettings | None = None,
    prompt: Prompt | None = None,
    num_envs: int = 64,
    turn_format: str | TurnFormat | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> Measures:
    """Play the probes.

    Args:
        make_env: makes the environment.
        agent: the agent that would be calibrated.
        expert: demonstrates.
        task_ids: tasks to choose from.
        settings: how much is probed.
        calibration: as the run would calibrate.
        step_rewards: as the run would estimate.
        prompt: what stands before each episode.
        num_envs: episodes in progress.
        turn_format: how agent and expert write their turns.
        on_progress: called with what is measured next.

    Raises:
        DataError: fewer than two tasks, or the expert wins none.
    """
    s = settings or DiagnosisSettings()
    ids = random.Random(s.seed).sample(sorted(task_ids), min(s.num_tasks, len(task_ids)))
    if len(ids) < 2:
        raise DataError(f"a diagnosis needs at least 2 tasks, got {len(ids)}; choose another split")
    seeds = {t: derive_seed(s.seed, t, 0) for t in ids}
    with (
        Collector(make_env, expert, prompt=prompt, num_envs=num_envs, turn_format=turn_format) as by_expert,
        Collector(make_env, agent, prompt=prompt, num_envs=num_envs, turn_format=turn_format) as by_agent,
    ):
        on_progress("demonstrations")
        shown = by_expert.run([EpisodeRequest(task_id=t, seed=seeds[t], sampling=GREEDY, capture=True) for t in ids])
        demos = [e for e in shown if e.trajectory.won]
        if not demos:
            raise DataError(
                f"the expert {expert.name!r} wins none of {len(ids)} tasks ({_first_error(shown)}); there is nothing "
                "to learn from"
            )
        on_progress("chance")
        repeatable, other_seeds = _chance(by_expert, demos, s)
        on_progress("the agent's own episodes")
        greedy, own = _own_episodes(by_agent, demos, s)
        on_progress("values")
        probe = _Probe(by_agent, s, step_rewards or StepRewardSettings())
        left = _left(greedy, own, demos)
        early, late = probe.along(demos)
        before, after = probe.around([(e, d, t) for e, d, t in left if e.forks])
        on_progress("what the expert knows")
        found, chance = _searching(make_env, demos, s)
        on_progress("calibration")
        start = time.perf_counter()
        result = calibrate(
            by_agent,
            [d.trajectory.with_id() for d in demos],
            settings=calibration,
            reward_settings=step_rewards,
            seed=s.seed,
            make_env=make_env,
        )
        seconds = time.perf_counter() - start
        tokens = sum(r.counts.num_sampled_tokens for r in result.results)
    played = [*greedy, *own]
    correlation, num_states = probe.correlation()
    return Measures(
        expert_steps=tuple(len(d.trajectory) for d in demos),
        expert_won=Share(len(demos), len(shown)),
        expert_says_clairvoyant=bool(getattr(expert, "is_clairvoyant", False)),
        repeatable=repeatable,
        holds_under_other_seeds=other_seeds,
        agent_won=Share(sum(e.trajectory.won for e in greedy), len(greedy)),
        left_path=Share(len(left), len(played)),
        recovered=Share(sum(e.trajectory.won for e, _, _ in left), len(left)),
        lost_for_good=Share(
            sum(b > 0 and a == 0 for b, a in zip(before, after, strict=True)), sum(b > 0 for b in before)
        ),
        left_at=tuple(t for _, _, t in left),
        values_early=early,
        values_late=late,
        rank_correlation=correlation,
        num_states=num_states,
        value_deviation=probe.deviation(),
        search_found=found,
        search_found_by_chance=chance,
        results=result.results,
        seconds_per_token=seconds / tokens if tokens else math.nan,
    )


def _first_error(episodes: Sequence[Episode]) -> str:
    return next((e.trajectory.error for e in episodes if e.trajectory.error), "no episode was solved")


def _chance(collector: Collector, demos: Sequence[Episode], s: DiagnosisSettings) -> tuple[Share, Share]:
    """Replays under the own seed, and under others from an equal beginning."""
    requests = [
        EpisodeRequest(
            task_id=d.trajectory.task_id,
            seed=d.trajectory.seed if i == 0 else derive_seed(s.seed, d.trajectory.task_id, 100 + i),
            script=d.trajectory.steps,
            max_agent_turns=0,
            tag=(k, i),
        )
        for k, d in enumerate(demos)
        for i in range(s.num_replays + 1)
    ]
    same, won = [], []
    for episode in collector.run(requests):
        k, i = episode.request.tag
        demo, again = demos[k].trajectory, episode.trajectory
        if i == 0:
            same.append([x.observation for x in demo.steps] == [x.observation for x in again.steps])
        elif again.first_observation == demo.first_observation:
            won.append(again.won)
    return Share(sum(same), len(same)), Share(sum(won), len(won))


def _own_episodes(
    collector: Collector, demos: Sequence[Episode], s: DiagnosisSettings
) -> tuple[list[Episode], list[Episode]]:
    """The agent's greedy and its sampled episodes, from the states in which the demonstrations begin."""
    sampled = Sampling(temperature=s.temperature, max_new_tokens=s.max_new_tokens)
    greedy = Sampling(temperature=0.0, max_new_tokens=s.max_new_tokens)
    requests = [
        EpisodeRequest(
            task_id=d.trajectory.task_id,
            seed=derive_seed(s.seed, d.trajectory.task_id, index),
            sampling=sampling,
            start=d.forks[0],
            capture=True,
        )
        for index, sampling in ((1, greedy), (2, sampled))
        for d in demos
    ]
    episodes = collector.run(requests)
    return episodes[: len(demos)], episodes[len(demos) :]


def _left(
    greedy: Sequence[Episode], own: Sequence[Episode], demos: Sequence[Episode]
) -> list[tuple[Episode, Episode, int]]:
    """(episode, demonstration, step) of the episodes that left the demonstration's actions."""
    found = []
    for episodes in (greedy, own):
        for episode, demo in zip(episodes, demos, strict=True):
            pairs = zip(episode.trajectory.actions, demo.trajectory.actions, strict=False)
            at = next((t for t, (a, b) in enumerate(pairs) if normal_action(a) != normal_action(b)), None)
            if at is not None:
                found.append((episode, demo, at))
    return found


class _Probe:
    """Values of states by continuations, limited as the run limits them, and by unlimited ones for comparison."""

    def __init__(self, collector: Collector, settings: DiagnosisSettings, rewards: StepRewardSettings) -> None:
        self.collector, self.settings, self.rewards = collector, settings, rewards
        self.num_asked = 0
        self.states: list[tuple[list[float], list[float]]] = []
        """(scores of limited continuations, wins of unlimited ones) by state"""

    def along(self, demos: Sequence[Episode]) -> tuple[Share, Share]:
        """Values in the first and the last third of the demonstrations."""
        early: list[tuple[Fork | None, int]] = []
        late: list[tuple[Fork | None, int]] = []
        for d in demos:
            n = len(d.trajectory)
            early.append((d.forks[n // 6], n - n // 6))
            late.append((d.forks[max(0, n - 1 - n // 6)], 1 + n // 6))
        found = self._values([*early, *late])
        parts = found[: len(demos)], found[len(demos) :]
        shares = [Share(sum(map(sum, part)), sum(map(len, part))) for part in parts]
        return shares[0], shares[1]

    def around(self, left: Sequence[tuple[Episode, Episode, int]]) -> tuple[list[float], list[float]]:
        """Mean values before and after the step at which episodes left the path."""
        states: list[tuple[Fork | None, int]] = []
        for episode, demo, t in left:
            rest = len(demo.trajectory) - t
            ended = t + 1 == len(episode.trajectory) and episode.trajectory.status in ("terminated", "truncated")
            states += [(episode.forks[t], rest), (None if ended else episode.forks[t + 1], rest)]
        values = self._values(states, final={i: left[i // 2][0].trajectory.score for i in range(1, len(states), 2)})
        means = [sum(v) / len(v) for v in values]
        return means[::2], means[1::2]

    def _values(
        self, states: Sequence[tuple[Fork | None, int]], final: dict[int, float] | None = None
    ) -> list[list[float]]:
        """Scores of the continuations of each state; of a state after the end the episode's own score."""
        s, requests = self.settings, []
        for index, (fork, rest) in enumerate(states):
            if fork is None:
                continue
            limit = self.rewards.max_steps
            if self.rewards.max_length_ratio is not None:
                limit = min(limit, int(self.rewards.max_length_ratio * rest) + 4)
            for i in range(s.num_continuations + 2):
                limited = i < s.num_continuations
                requests.append(
                    EpisodeRequest(
                        task_id=fork.snapshot.task_id,
                        seed=derive_seed(s.seed, fork.snapshot.task_id, 1000 + self.num_asked),
                        sampling=Sampling(temperature=s.temperature, max_new_tokens=s.max_new_tokens),
                        start=fork,
                        max_agent_turns=limit if limited else None,
                        tag=(index, limited),
                    )
                )
                self.num_asked += 1
        scores: list[list[float]] = [[] for _ in states]
        wins: list[list[float]] = [[] for _ in states]
        for episode in self.collector.run(requests):
            index, limited = episode.request.tag
            t = episode.trajectory
            (scores if limited else wins)[index].append(t.score if limited else float(t.won))
        for index, known in enumerate(scores):
            if known:
                self.states.append((known, wins[index]))
            else:
                known.append((final or {}).get(index, 0.0))
        return scores

    def correlation(self) -> tuple[float | None, int]:
        """Spearman's rank correlation of estimated values and independent wins."""
        values = np.array([np.mean(a) for a, b in self.states if b])
        wins = np.array([np.mean(b) for _, b in self.states if b])
        if len(values) < 3 or np.ptp(values) == 0 or np.ptp(wins) == 0:
            return None, len(values)
        return float(np.corrcoef(_ranks(values), _ranks(wins))[0, 1]), len(values)

    def deviation(self) -> float:
        """Root mean square standard error of the values."""
        errors = [np.var(a, ddof=1) / len(a) for a, _ in self.states if len(a) > 1]
        return float(np.sqrt(np.mean(errors))) if errors else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks with ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2.0)[inverse]


# -- what the expert knows -------------------------------------------------------------------------------------


def _searching(make_env: Callable[[], TextEnv], demos: Sequence[Episode], s: DiagnosisSettings) -> tuple[Share, Share]:
    """How often the expert's searching steps find what the task names, and how often others of their kind would.

    A step searches where a word of the goal has not been seen yet and the world offers at least three other actions
    with the same first word. An expert that acts on what it has seen cannot do much better than the others.
    """
    rng = random.Random(s.seed)
    env = bare_env(make_env())
    expert_hits, other_hits = [], []
    try:
        for demo in demos:
            t = demo.trajectory
            wanted = _hidden_words(t)
            if not wanted:
                continue
            for index, fork in enumerate(demo.forks[: len(t)]):
                # Found by this action, or by the next one where it has to be opened first.
                soon = " ".join(x.observation for x in t.steps[index : index + 2])
                env.restore(fork.snapshot)
                verb = t.steps[index].action.split(" ", 1)[0]
                offered = [a for a in env.admissible_actions() or () if a.split(" ", 1)[0] == verb]
                others = [a for a in offered if normal_action(a) != normal_action(t.steps[index].action)]
                if len(others) >= 3:
                    expert_hits.append(_sees(soon, wanted))
                    for action in rng.sample(others, min(s.num_alternatives, len(others))):
                        other_hits.append(_tried(env, fork, action, wanted))
                if _sees(t.steps[index].observation, wanted):
                    break
    finally:
        env.close()
    return Share(sum(expert_hits), len(expert_hits)), Share(sum(other_hits), len(other_hits))


def _tried(env: TextEnv, fork: Fork, action: str, wanted: set[str]) -> bool:
    """Whether an action shows a wanted word, alone or with one that it makes possible."""
    env.restore(fork.snapshot)
    before = set(env.admissible_actions() or ())
    observation, _, terminated, truncated, _ = env.step(action)
    if _sees(observation, wanted) or terminated or truncated:
        return _sees(observation, wanted)
    named = set(action.split(" ")[1:])
    new = [a for a in env.admissible_actions() or () if a not in before and named & set(a.split(" "))]
    place = env.snapshot()
    for then in new[:3]:
        env.restore(place)
        if _sees(env.step(then)[0], wanted):
            return True
    return False


def _words(text: str) -> set[str]:
    return {w for w in re.findall(r"[a-z]+", text.casefold()) if len(w) >= 3}


def _hidden_words(t: Trajectory) -> set[str]:
    """Words of the goal that the first observation shows nowhere else, and that a later one shows."""
    goal = t.goal or t.first_observation
    elsewhere = t.first_observation.replace(goal, " ")
    later = _words(" ".join(s.observation for s in t.steps))
    return (_words(goal) - _words(elsewhere)) & later


def _sees(text: str, wanted: set[str]) -> bool:
    return bool(_words(text) & wanted)
