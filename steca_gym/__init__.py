"""steca-gym: text environments, rollouts and step-level trajectory calibration for LLM agents.

Importing this package loads no torch, transformers, trl, wandb or ray.
"""

from steca_gym.agent import Agent, Message, Prompt, Sampling, Turn, TurnRequest, parse_turn, render_turn
from steca_gym.env import Outcome, Snapshot, TextEnv, World
from steca_gym.errors import StecaError
from steca_gym.trajectory import Step, Trajectory

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Message",
    "Outcome",
    "Prompt",
    "Sampling",
    "Snapshot",
    "StecaError",
    "Step",
    "TextEnv",
    "Trajectory",
    "Turn",
    "TurnRequest",
    "World",
    "__version__",
    "parse_turn",
    "render_turn",
]
