"""Rejection-sampling fine-tuning: expert trajectories and the agent's own successes (Yuan et al. 2023)."""

from __future__ import annotations

from pathlib import Path

from steca_gym import phases
from steca_gym.run import Run
from steca_gym.trajectory import WeightedTrajectory


def rft(run: Run) -> Path | None:
    """Warm up, sample episodes on the training tasks, keep the distinct successes, train on both together."""
    experts = phases.demonstrations(run)
    base = phases.warm_up(run, experts)
    own = phases.own_successes(run, base, [e.task_id for e in experts])
    samples = [WeightedTrajectory(trajectory=e) for e in experts]
    samples += [WeightedTrajectory(trajectory=t, kind="explored") for t in own]
    return phases.reinforce(run, base, samples)
