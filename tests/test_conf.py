"""Every configuration composes, and what it says fits what the code takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import steca_gym.conf
from omegaconf import OmegaConf

from steca_gym.calibration import preset_from_config
from steca_gym.cli.composing import compose
from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.methods import make_method
from steca_gym.methods.context import LoRAConfig
from steca_gym.methods.stages import train_settings
from steca_gym.runs.context import read_config
from steca_gym.runs.planning import check_settings, plan
from steca_gym.training import TrainSettings

ROOT = Path(steca_gym.conf.__file__).parent
# An agent takes these two; they are not chosen by themselves.
CHOICES = sorted((f.parent.name, f.stem) for f in ROOT.glob("*/*.yaml") if f.parent.name not in ("training", "lora"))


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    plus = "+" if group == "launcher" else ""
    cfg = compose([f"{plus}{group}={choice}"])
    assert cfg.env.id
    if choice != "custom":  # whose name is the user's to give
        assert cfg.method.name


@pytest.mark.parametrize("method", [choice for group, choice in CHOICES if group == "method" and choice != "custom"])
@pytest.mark.parametrize("extra", ["preset=default", "preset=paper", "preset=repo", "preset=smoke", "experiment=demo"])
def test_every_method_takes_its_settings(method: str, extra: str) -> None:
    config, _ = read_config(compose([f"method={method}", extra]))
    made = make_method(config.method)
    assert [s.name for s in made.stages()] == list(dict.fromkeys(s.name for s in made.stages()))


def test_every_training_setting_is_in_the_configuration() -> None:
    listed = OmegaConf.to_container(OmegaConf.load(ROOT / "training" / "default.yaml"))
    assert isinstance(listed, dict)
    fields = {f.name: f.default for f in dataclasses.fields(TrainSettings) if f.name != "seed"}
    assert listed == fields


def test_a_misspelt_setting_is_found_before_anything_is_played() -> None:
    config, _ = read_config(compose(["method=sft", "++agent.train.lora_rnak=4"]))
    with pytest.raises(UnknownNameError, match="'agent.train.lora_rnak'; did you mean 'agent.train.lora_rank'"):
        check_settings(plan(make_method(config.method), config), config)


def test_adapters_are_set_once_for_all_trainings() -> None:
    listed = OmegaConf.to_container(OmegaConf.load(ROOT / "lora" / "default.yaml"))
    assert listed == dataclasses.asdict(LoRAConfig())
    config, _ = read_config(compose(["method=sft", "agent.lora.rank=4", "agent.lora.target_modules=[q_proj]"]))
    for which in ("warm_up", "train"):
        settings = train_settings(config, which)
        assert (settings.lora_rank, settings.lora_alpha, settings.lora_target_modules) == (4, None, ("q_proj",))
    plain, _ = read_config(compose(["method=sft", "agent.train.lora_rank=8"]))
    assert [train_settings(plain, which).lora_rank for which in ("warm_up", "train")] == [None, 8]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["agent.lora.rank=4", "agent.train.lora_rank=8"], "agent.train.lora_rank=8 and agent.lora.rank=4: set one"),
        (["agent.lora.alpha=4"], "no effect without agent.lora.rank"),
        (["agent.lora.rank=0"], "lora_rank"),
        (["agent.lora.rank=4", "agent.lora.dropout=1.0"], "lora_dropout"),
        (["agent.lora.rank=4", "method=grpo"], "online methods train all weights"),
    ],
)
def test_adapters_that_cannot_work_are_refused(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        config, _ = read_config(compose(["method=sft", *overrides]))
        check_settings(plan(make_method(config.method), config), config)


@pytest.mark.parametrize("agent", ["tiny", "transformers"])
@pytest.mark.parametrize("phase", ["warm_up", "train"])
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
    assert preset_from_config(cfg["preset"]).step_rewards.num_samples == 1
    assert TrainSettings(**cfg["agent"]["warm_up"]).max_steps and TrainSettings(**cfg["agent"]["train"]).max_steps


def test_a_world_whose_episodes_are_dear_bounds_how_many_live() -> None:
    assert compose(["env=household"]).collector.num_envs == 64
    assert compose(["env=scienceworld"]).collector.num_envs == 2
    assert compose(["env=scienceworld", "collector.num_envs=5"]).collector.num_envs == 5
