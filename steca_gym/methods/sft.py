"""Supervised fine-tuning (behaviour cloning) on expert trajectories."""

from __future__ import annotations

from pathlib import Path

from steca_gym import phases
from steca_gym.run import Run
from steca_gym.trajectory import WeightedTrajectory


def sft(run: Run) -> Path | None:
    """Warm up, then train on the expert in as many phases as the other methods have rounds.

    Without these every other method would also win by having trained for longer; with ``max_steps`` in the training's
    settings all methods take equally many optimizer steps.
    """
    experts = phases.demonstrations(run)
    model = phases.warm_up(run, experts)
    for round_index in range(int(run.settings["method"]["num_rounds"])):
        model = phases.reinforce(run, model, [WeightedTrajectory(trajectory=e) for e in experts], round_index)
    return model
