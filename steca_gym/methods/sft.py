"""Supervised fine-tuning (behaviour cloning) on expert trajectories."""

from __future__ import annotations

from pathlib import Path

from steca_gym import phases
from steca_gym.run import Run
from steca_gym.trajectory import WeightedTrajectory


def sft(run: Run) -> Path | None:
    """Warm up, then train on the expert for as many steps as the other methods do in their last phase.

    Without the second part every other method would also win by having trained for longer.
    """
    experts = phases.demonstrations(run)
    base = phases.warm_up(run, experts)
    return phases.reinforce(run, base, [WeightedTrajectory(trajectory=e) for e in experts])
