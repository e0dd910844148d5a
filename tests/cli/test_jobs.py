"""The name of a sweep: equal whenever the same command is given, whatever it runs on."""

from __future__ import annotations

import re

from steca_gym.cli.jobs import sweep_name


def test_a_sweep_is_named_after_what_it_sweeps() -> None:
    name = sweep_name(["-m", "method=sft,steca", "agent.train.learning_rate=choice(1e-3,2e-3)", "env=household"])
    assert re.fullmatch(r"sweep-learning_rate-method-[0-9a-f]{6}", name)
    assert len(sweep_name(["-m", *(f"a.very_long_setting_{i}=1,2" for i in range(20))])) <= 100


def test_the_same_command_has_the_same_name_wherever_its_jobs_run() -> None:
    first = sweep_name(["-m", "seed=0,1", "env=household"])
    assert first == sweep_name(["env=household", "--multirun", "seed=0,1", "hydra/launcher=joblib"])
    assert first == sweep_name(["-m", "env=household", "seed=0,1", "--config-dir", "x"])
    assert first != sweep_name(["-m", "seed=0,1", "env=alfworld"])


def test_a_single_run_is_no_sweep_and_a_list_sweeps_nothing() -> None:
    assert sweep_name(["seed=0", "logger=[jsonl,wandb]"]) == ""
    assert re.fullmatch(r"sweep-seed-[0-9a-f]{6}", sweep_name(["-m", "seed=0,1", "logger=[jsonl,wandb]"]))
