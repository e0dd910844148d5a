"""A tiny language and a tiny model, made once for all training tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from steca_gym.agents.tiny import build_tiny

from steca_gym.agent import Message, Prompt
from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory

# The model is smaller than what a second thread costs.
torch.set_num_threads(1)

PROMPT = Prompt(
    instruction="You tidy a house.",
    examples=(Message("user", "A lamp."), Message("assistant", "Thought: dark.\nAction: use lamp")),
)


def trajectory(index: int, num_steps: int) -> Trajectory:
    rng = random.Random(index)
    steps = tuple(
        Step(
            thought=f"I look in drawer {(k := rng.randint(1, 12))}.",
            action=f"go to drawer {k}",
            observation=f"You arrive at drawer {k}. It is {rng.choice(['open', 'closed'])}.",
        )
        for _ in range(num_steps)
    )
    return Trajectory(task_id=f"task-{index}", first_observation="A room with drawers.", steps=steps)


@pytest.fixture(scope="session")
def samples() -> list[WeightedTrajectory]:
    return [WeightedTrajectory(trajectory=trajectory(i, 1 + i % 4), weight=0.5 + i % 3) for i in range(16)]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, samples: list[WeightedTrajectory]) -> Path:
    texts = [m.content for s in samples for m in s.trajectory.messages(PROMPT)]
    folder = tmp_path_factory.mktemp("base")
    return build_tiny(texts, folder, seed=1, num_layers=1, hidden_size=32, num_heads=2, vocab_size=400)
