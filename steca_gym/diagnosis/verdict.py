"""What the measures mean: a verdict in words with its reasons, and what a whole run will cost."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from steca_gym.agent import Agent
from steca_gym.diagnosis.measures import Measures, measure
from steca_gym.env import TextEnv
from steca_gym.errors import ConfigError

Suited = Literal["suited", "suited from round two", "not suited"]
Code = Literal[
    "too short",
    "too random",
    "values disagree",
    "clairvoyant expert",
    "agent too weak",
    "always recoverable",
    "agent already good",
    "values late only",
]

MIN_STEPS = 4
"""median length of demonstrations below which nothing is left to calibrate"""
SHORT_STEPS = 8
"""the paper found no gain up to 7 steps, and most beyond 13"""
MIN_STATES = 8
"""states, episodes or searching steps below which a share decides nothing"""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why, and what to change."""

    code: Code
    found: str
    change: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The cost of the calibration of a whole run: (estimate, low, high), 90 % intervals over tasks."""

    num_experts: int
    num_rounds: int
    num_calibrations: tuple[float, float, float]
    num_tokens: tuple[float, float, float]
    num_env_steps: tuple[float, float, float]
    hours: tuple[float, float, float]
    money: tuple[float, float, float] | None
    """in the price's currency; None without a price"""
    calibrations_per_1000_rollouts: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The answer."""

    verdict: Suited
    reasons: tuple[Reason, ...]
    remarks: tuple[str, ...]
    """what does not decide, but is worth knowing"""
    measures: Measures
    forecast: Forecast

    def lines(self) -> list[str]:
        """For a person."""
        m, f = self.measures, self.forecast
        knows = "says that it knows more than the conversation" if m.expert_says_clairvoyant else "acts on texts"
        found = [f"Verdict: {self.verdict}" + (f" ({', '.join(r.code for r in self.reasons)})" if self.reasons else "")]
        for r in self.reasons:
            found += [f"  because {r.found}", f"  change: {r.change}"]
        found += [f"  note: {line}" for line in self.remarks]
        at = Counter(min(4, 5 * t // max(1, int(median(m.expert_steps)))) for t in m.left_at)
        where = ", ".join(f"{at.get(i, 0)}" for i in range(5))
        correlation = "not defined (one is constant)" if m.rank_correlation is None else f"{m.rank_correlation:.2f}"
        found += [
            "",
            f"demonstrations       won {m.expert_won}; {min(m.expert_steps)} to {max(m.expert_steps)} steps, median "
            f"{median(m.expert_steps):.0f}",
            f"chance               repeated to the letter {m.repeatable}; won under other seeds "
            f"{m.holds_under_other_seeds}",
            f"the agent            wins {m.agent_won}; leaves the demonstration {m.left_path}; then recovers by itself "
            f"{m.recovered}",
            f"                     lost for good by the step that left {m.lost_for_good}; left in each fifth of the "
            f"episode: {where}",
            f"values               won from early states {m.values_early}, from late states {m.values_late}",
            f"                     rank correlation with the outcome {correlation}, {m.num_states} states; standard "
            f"error of a value {m.value_deviation:.2f}; ties {m.ties}",
            f"the expert           {knows}; searching steps that find {m.search_found}, others of their kind "
            f"{m.search_found_by_chance}",
            "",
            f"calibrating {f.num_experts} trajectories in {f.num_rounds} round(s), with 90 % intervals:",
            f"  calibrations       {_span(f.num_calibrations)}; {f.calibrations_per_1000_rollouts:.0f} in 1,000 "
            "rollouts",
            f"  tokens sampled     {_span(f.num_tokens)}",
            f"  environment steps  {_span(f.num_env_steps)}",
            f"  hours here         {_span(f.hours, '.2f')}",
        ]
        if f.money is not None:
            found.append(f"  money              {_span(f.money, '.2f')}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        m = self.measures
        shares = (
            "expert_won repeatable holds_under_other_seeds agent_won left_path recovered lost_for_good values_early "
            "values_late search_found search_found_by_chance ties"
        ).split()
        return {
            "verdict": self.verdict,
            "reasons": [{"code": r.code, "found": r.found, "change": r.change} for r in self.reasons],
            "remarks": list(self.remarks),
            "measures": {name: {"hits": getattr(m, name).hits, "count": getattr(m, name).count} for name in shares}
            | {
                "expert_steps": list(m.expert_steps),
                "left_at": list(m.left_at),
                "rank_correlation": m.rank_correlation,
                "num_states": m.num_states,
            },
            "forecast": {name: getattr(self.forecast, name) for name in Forecast.__slots__ if name != "measures"},
        }


def diagnose(
    make_env: Callable[[], TextEnv],
    agent: Agent,
    expert: Agent,
    task_ids: Sequence[str],
    *,
    num_experts: int,
    num_rounds: int = 1,
    price_per_million_tokens: float | None = None,
    **probes: Any,
) -> Diagnosis:
    """Measure, judge and forecast.

    Args:
        make_env: makes the environment.
        agent: the agent that would be calibrated.
        expert: demonstrates.
        task_ids: tasks to choose from.
        num_experts: expert trajectories that the run would explore.
        num_rounds: of calibration.
        price_per_million_tokens: of sampled tokens; None: no money is forecast.
        probes: passed to ``measure``.
    """
    found = measure(make_env, agent, expert, task_ids, **probes)
    verdict, reasons, remarks = judge_measures(found)
    return Diagnosis(
        verdict=verdict,
        reasons=tuple(reasons),
        remarks=tuple(remarks),
        measures=found,
        forecast=forecast(found, num_experts, num_rounds, price_per_million_tokens),
    )


def judge_measures(m: Measures) -> tuple[Suited, list[Reason], list[str]]:
    """The verdict, what it is because of, and remarks."""
    reasons: list[Reason] = []
    remarks: list[str] = []
    steps = median(m.expert_steps)
    if steps < MIN_STEPS:
        reasons.append(
            Reason(
                "too short",
                f"demonstrations have {steps:.0f} steps (median): there is no history that a correction could repair",
                "train with method=sft or rft, or choose longer tasks",
            )
        )
    elif steps < SHORT_STEPS:
        remarks.append(f"demonstrations are short ({steps:.0f} steps); the paper found no gain up to 7 steps")
    if (share := m.holds_under_other_seeds).count >= MIN_STATES and share.interval[1] < 0.9:
        reasons.append(
            Reason(
                "too random",
                f"the same actions from the same beginning win {share}: chance decides, so that a lost episode says "
                "little about its steps",
                "more samples per state (step_rewards.max_samples), or a world whose randomness is part of its seed",
            )
        )
    if m.repeatable.value is not None and m.repeatable.value < 1:
        remarks.append(
            f"the same actions under the same seed give the same texts in {m.repeatable} only: the world breaks its "
            "contract (steca check-env)"
        )
    if m.rank_correlation is not None and m.num_states >= MIN_STATES and m.rank_correlation < 0.1:
        reasons.append(
            Reason(
                "values disagree",
                f"the value of a state and the outcome from it are not correlated ({m.rank_correlation:.2f} over "
                f"{m.num_states} states): the score rewards something else than success",
                "correct the world's score, or let continuations run to the end (step_rewards.max_length_ratio=null)",
            )
        )
    found, chance = m.search_found, m.search_found_by_chance
    if found.count >= MIN_STATES and found.interval[0] > 0.5 and found.interval[0] > chance.interval[1] + 0.2:
        reasons.append(
            Reason(
                "clairvoyant expert",
                f"where the expert looks for something it finds it {found}, other actions of the same kind {chance}: "
                "it knows what the agent cannot see, and shows nothing about searching",
                "an expert that acts on the conversation (expert=searching where there is one), or demonstrations of "
                "people",
            )
        )
    elif m.expert_says_clairvoyant and found.count < MIN_STATES:
        remarks.append("the expert reads the world's state; whether that matters here could not be measured")
    weak_early, weak_late = (s.count > 0 and s.hits / s.count < 0.05 for s in (m.values_early, m.values_late))
    from_two = weak_early and not weak_late
    if weak_early and weak_late:
        reasons.append(
            Reason(
                "agent too weak",
                f"continuations win {m.values_early} early and {m.values_late} late in the demonstrations: values of 0 "
                "on both sides say nothing",
                "more or longer warm-up first, or a better model",
            )
        )
    if m.recovered.count >= MIN_STATES and m.recovered.interval[0] > 0.7:
        reasons.append(
            Reason(
                "always recoverable",
                f"episodes that left the demonstration won all the same: {m.recovered}",
                "nothing has to be corrected here; a shorter horizon, or a harder task, if steps should be saved",
            )
        )
    elif m.agent_won.value is not None and m.agent_won.count >= MIN_STATES and m.agent_won.value >= 0.95:
        reasons.append(
            Reason("agent already good", f"the agent wins {m.agent_won}", "harder tasks, or nothing: it is done")
        )
    if reasons:
        return "not suited", reasons, remarks
    if from_two:
        late = Reason(
            "values late only",
            f"continuations win {m.values_early} from early states and {m.values_late} from late ones: the first round "
            "corrects the ends of episodes, later ones their beginnings",
            "at least two rounds (exploration.num_rounds=2)",
        )
        return "suited from round two", [late], remarks
    return "suited", [], remarks


def forecast(
    m: Measures, num_experts: int, num_rounds: int = 1, price_per_million_tokens: float | None = None
) -> Forecast:
    """What calibrating ``num_experts`` trajectories in ``num_rounds`` costs, from the probed ones.

    Later rounds are taken to cost what the first one does, which is too much where the agent gets better. Intervals are
    bootstrapped over the probed trajectories (1,000 draws); they know nothing of trajectories unlike these.
    """
    if num_experts < 1 or num_rounds < 1:
        raise ConfigError(f"num_experts and num_rounds must be >= 1, got {num_experts} and {num_rounds}")
    rows = [
        (
            float(sum(c.status == "accepted" for c in r.calibrations)),
            float(r.counts.num_sampled_tokens),
            float(r.counts.num_env_steps),
        )
        for r in m.results
    ]
    total = num_experts * num_rounds
    rng = random.Random(0)
    draws = [[rng.choice(rows) for _ in rows] for _ in range(1000)]

    def span(column: int) -> tuple[float, float, float]:
        means = sorted(sum(row[column] for row in draw) / len(draw) for draw in draws)
        # A sum over few experts varies by itself as well.
        values = [row[column] for row in rows]
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1) / num_experts)
        low, high = means[50] - 1.645 * spread, means[949] + 1.645 * spread
        return total * mean, total * max(0.0, low), total * high

    tokens = span(1)
    seconds = 0.0 if math.isnan(m.seconds_per_token) else m.seconds_per_token
    price = price_per_million_tokens
    rollouts = sum(r.counts.num_samples + r.counts.num_steps for r in m.results)
    return Forecast(
        num_experts=num_experts,
        num_rounds=num_rounds,
        num_calibrations=span(0),
        num_tokens=tokens,
        num_env_steps=span(2),
        hours=tuple(t * seconds / 3600 for t in tokens),  # type: ignore[arg-type]
        money=None if price is None else tuple(t * price / 1e6 for t in tokens),  # type: ignore[arg-type]
        calibrations_per_1000_rollouts=1000 * sum(row[0] for row in rows) / rollouts if rollouts else 0.0,
    )


def _span(found: tuple[float, float, float], form: str = ",.0f") -> str:
    return f"{found[0]:{form}} ({found[1]:{form}} to {found[2]:{form}})"
