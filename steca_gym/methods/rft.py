"""Rejection-sampling fine-tuning: expert trajectories and the agent's own successes (Yuan et al. 2023)."""

from __future__ import annotations

from pathlib import Path

from steca_gym import phases
from steca_gym.run import Run
from steca_gym.trajectory import WeightedTrajectory


def rft(run: Run) -> Path | None:
    """Warm up, sample episodes on the training tasks, keep the distinct successes, train on both together.

    ``method.num_rounds`` phases of training on these, so that all methods may be given equally many optimizer steps.
    """
    experts = phases.demonstrations(run)
    base = phases.warm_up(run, experts)
    own = phases.own_successes(run, base, [e.task_id for e in experts])
    samples = [WeightedTrajectory(trajectory=e) for e in experts]
    samples += [WeightedTrajectory(trajectory=t, kind="explored") for t in own]
    model = base
    for round_index in range(int(run.settings["method"]["num_rounds"])):
        model = phases.reinforce(run, model, samples, round_index)
    return model
