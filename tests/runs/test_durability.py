"""``buffer.durability``: what the stored work of a run survives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from steca_gym.cli.composing import compose
from steca_gym.errors import ConfigError
from steca_gym.methods import make_method
from steca_gym.methods.context import BufferConfig
from steca_gym.runs import RunContext
from steca_gym.runs.context import read_config
from steca_gym.runs.planning import plan

NORMAL, FULL = 1, 2
"""SQLite's numbers"""


@pytest.mark.parametrize(
    ("overrides", "synchronous"),
    [([], NORMAL), (["buffer.durability=process"], NORMAL), (["buffer.durability=power"], FULL)],
)
def test_the_setting_reaches_the_runs_buffer(tmp_path: Path, overrides: list[str], synchronous: int) -> None:
    config, settings = read_config(compose(["env=household", *overrides]))
    context = RunContext(config, tmp_path, settings=settings)
    try:
        assert context.buffer._db.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        assert context.buffer._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    finally:
        context.close()


def test_it_is_part_of_no_stages_key() -> None:
    keys = []
    for durability in ("process", "power"):
        config, _ = read_config(compose(["env=household", "method=steca", f"buffer.durability={durability}"]))
        planned = plan(make_method(config.method), config)
        assert "durability" not in json.dumps([p.depends_on for p in planned], default=str)
        keys.append([p.key for p in planned])
    assert keys[0] and keys[0] == keys[1]


def test_a_run_that_was_made_before_there_was_the_setting_is_read() -> None:
    _, settings = read_config(compose(["env=household"]))
    del settings["buffer"]
    config, _ = read_config(OmegaConf.create(settings))
    assert config.buffer == BufferConfig(durability="process")


def test_another_word_is_refused() -> None:
    with pytest.raises(ConfigError, match="buffer.durability must be one of process, power, got 'disk'"):
        read_config(compose(["env=household", "buffer.durability=disk"]))
    with pytest.raises(ConfigError, match="buffer.durability must be 'process' or 'power', got 'disk'"):
        BufferConfig(durability="disk")  # type: ignore[arg-type]
