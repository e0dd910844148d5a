"""The stage that asks the agent for its own turn in every state of the demonstrations; several methods use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import Sampling
from steca_gym.calibration import CalibrationSettings
from steca_gym.calibration.exploration import TURN_BROKE, explore_one, play_all
from steca_gym.calibration.schedule import Procedure, Scheduler
from steca_gym.collectors.episodes import EpisodeRequest
from steca_gym.methods.base import Stage, round_name
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.methods.stages import demonstrations, engine_settings, report_broken, subsample
from steca_gym.seeding import derive_draw
from steca_gym.trajectory import Trajectory

KIND = "alternative"
_RETRIES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The agent's turns along an expert trajectory."""

    expert: Trajectory
    alternatives: tuple[Trajectory, ...] = ()
    """for each turn with another text than the expert's: the expert's steps before it, and the turn with the world's
    answer; only the turn is trainable. Equal turns in one state are given once"""
    error: str = ""
    """why the trajectory could not be explored"""


def ask_along(
    expert: Trajectory, *, num_samples: int, temperature: float, round_index: int, max_new_tokens: int, seed: int
) -> Procedure[Asked]:
    """Ask the agent ``num_samples`` times in every state of an expert trajectory (a procedure for ``Scheduler``)."""
    settings = CalibrationSettings(
        explore_temperature=temperature, max_new_tokens=max_new_tokens, round=round_index, max_retries=_RETRIES
    )
    explored = yield from explore_one(expert, settings, seed)
    if explored.error:
        return Asked(expert=expert, error=explored.error)
    requests = [
        EpisodeRequest(
            task_id=expert.task_id,
            seed=derive_draw(seed, explored.expert.trajectory_id, round_index, "alternative", step.step, i),
            sampling=Sampling(temperature=temperature, max_new_tokens=max_new_tokens),
            start=explored.forks[step.step],
            max_agent_turns=1,
        )
        for step in explored.steps
        for i in range(1, num_samples)
    ]
    more = yield from play_all(requests, priority=2.0, retries=_RETRIES)
    failed = next((e.trajectory.error for e in more if e.trajectory.status == "error"), "")
    if failed:
        return Asked(expert=expert, error=f"{TURN_BROKE}: {failed}")
    found: dict[tuple[int, str], Trajectory] = {}
    for played in [*(s.trajectory for s in explored.steps), *(e.trajectory for e in more)]:
        step, turn = len(played) - 1, played.steps[-1].turn_text()
        if turn != expert.steps[step].turn_text():
            found.setdefault((step, turn), _only_last_trainable(played))
    ordered = [found[key] for key in sorted(found)]
    return Asked(expert=expert, alternatives=tuple(ordered))


def _only_last_trainable(played: Trajectory) -> Trajectory:
    last = len(played) - 1
    steps = tuple(dataclasses.replace(s, trainable=i == last) for i, s in enumerate(played.steps))
    return dataclasses.replace(played, steps=steps, trajectory_id="")


class AskAlongExperts(Stage):
    """Ask the agent in every state of the demonstrations; each trajectory's turns are stored as soon as they stand.

    Args:
        num_samples: turns per state, >= 1.
        temperature: of the turns, >= 0; 0 is greedy.
        num_experts: expert trajectories, drawn with the run's seed; None: all.
        round_index: of the round; the stages are ``alternatives``, ``alternatives.1``, ...
    """

    def __init__(self, *, num_samples: int, temperature: float, num_experts: int | None, round_index: int) -> None:
        """See the class."""
        self.name = round_name("alternatives", round_index)
        self.num_samples, self.temperature = num_samples, temperature
        self.num_experts, self.round_index = num_experts, round_index

    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """How many turns are sampled, how, and by which engine."""
        return {
            "num_samples": self.num_samples,
            "temperature": self.temperature,
            "num_experts": self.num_experts,
            **engine_settings(config),
        }

    def run(self, context: Context, record: Record) -> None:
        """Ask along what is not stored yet."""
        done = context.buffer.done(self.name)
        experts = subsample(context.config.seed, demonstrations(context), self.num_experts)
        todo = [e for e in experts if e.with_id().trajectory_id not in done]
        broken: list[str] = []
        procedures = (
            ask_along(
                e,
                num_samples=self.num_samples,
                temperature=self.temperature,
                round_index=self.round_index,
                max_new_tokens=context.config.agent.max_new_tokens,
                seed=context.config.seed,
            )
            for e in todo
        )
        agent = context.agent(context.model)
        with context.collector(agent) as collector, context.progress("own turns", len(todo)) as on_progress:
            num_done = 0

            def keep(_: int, result: object) -> None:
                nonlocal num_done
                assert isinstance(result, Asked)
                num_done += 1
                on_progress(num_done)
                if result.error:
                    broken.append(result.error)
                if result.error.startswith(TURN_BROKE):
                    return  # says nothing of the trajectory: the next attempt asks again
                key = result.expert.with_id().trajectory_id
                context.buffer.add_trajectories(
                    result.alternatives, kind=KIND, round_index=self.round_index, done=(self.name, [key])
                )

            collector.drive(Scheduler(procedures, keep))
        report_broken(context, broken, len(todo), "expert trajectories")
        found = alternatives(context, self.round_index)
        record.update(num_experts=len(experts), num_broken=len(broken), num_alternatives=len(found))
        context.say(f"  {len(found)} turns that differ from the expert's along {len(experts)} trajectories")

    def adopt(self, context: Context, source: Stored) -> bool:
        """Copy the turns."""
        with source.buffer() as other:
            found, done = other.trajectories(kind=KIND, round_index=self.round_index), other.done(self.name)
        context.buffer.add_trajectories(found, kind=KIND, round_index=self.round_index, done=(self.name, done))
        return True


def alternatives(context: Context, round_index: int) -> list[Trajectory]:
    """The stored turns of a round, as ``Asked.alternatives`` describes them."""
    return context.buffer.trajectories(kind=KIND, round_index=round_index)
