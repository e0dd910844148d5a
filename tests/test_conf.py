"""Every configuration composes, and what it says fits what the code takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import steca_gym.conf
from omegaconf import OmegaConf

from steca_gym.calibration import CalibrationSettings, WeightSettings
from steca_gym.compare import compose
from steca_gym.step_rewards import StepRewardSettings
from steca_gym.training import TrainSettings

ROOT = Path(steca_gym.conf.__file__).parent
CHOICES = sorted((f.parent.name, f.stem) for f in ROOT.glob("*/*.yaml"))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    plus = "+" if group == "launcher" else ""
    cfg = compose([f"{plus}{group}={choice}"])
    assert cfg.env.id and cfg.method.name


@pytest.mark.parametrize("name", ["default", "paper", "repo"])
def test_preset_files_say_what_the_presets_are(name: str) -> None:
    preset = OmegaConf.to_container(compose([f"preset={name}"]).preset)
    assert isinstance(preset, dict)
    assert CalibrationSettings.preset(name) == CalibrationSettings.preset(name, **preset["calibration"])
    assert StepRewardSettings.preset(name) == StepRewardSettings.preset(name, **preset["step_rewards"])
    assert WeightSettings.preset(name) == WeightSettings.preset(name, **preset["weights"])


@pytest.mark.parametrize("agent", ["tiny", "transformers"])
@pytest.mark.parametrize("phase", ["warm_up", "reinforce"])
def test_training_settings_are_accepted(agent: str, phase: str) -> None:
    raw = OmegaConf.to_container(
        compose([f"agent={agent}", *(["agent.model=x"] if agent == "transformers" else [])]).agent
    )
    assert isinstance(raw, dict)
    assert TrainSettings(**raw[phase]).learning_rate > 0


@pytest.mark.parametrize("env", [choice for group, choice in CHOICES if group == "env"])
def test_smoke_makes_a_run_in_any_world_small(env: str) -> None:
    cfg = OmegaConf.to_container(compose([f"env={env}", "preset=smoke"]), resolve=True)
    assert isinstance(cfg, dict)
    assert cfg["env"]["num_train_tasks"] <= 16 and cfg["exploration"]["num_experts"] <= 4
    assert cfg["preset"]["name"] == "default"
    CalibrationSettings.preset("default", **cfg["preset"]["calibration"])
    assert StepRewardSettings.preset("default", **cfg["preset"]["step_rewards"]).num_samples == 1
    assert TrainSettings(**cfg["agent"]["warm_up"]).max_steps and TrainSettings(**cfg["agent"]["reinforce"]).max_steps


def test_a_world_whose_episodes_are_dear_bounds_how_many_live() -> None:
    assert compose(["env=household"]).collector.num_envs == 64
    assert compose(["env=scienceworld"]).collector.num_envs == 2
    assert compose(["env=scienceworld", "collector.num_envs=5"]).collector.num_envs == 5
