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
