"""Models whose weights do not fit twice: one is in memory while a stage acts or trains, never two."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.playing import play

SEEN: list[tuple[str, int]] = []


class ModelsAlive:
    """A tracker that counts the models in memory whenever a stage reports."""

    def log(self, metrics: Mapping[str, float], *, phase: str = "", step: int | None = None) -> None:
        """Count embeddings of distinct storage: each model has one."""
        tables = {
            m.weight.data_ptr() for m in gc.get_objects() if isinstance(m, torch.nn.Embedding) and m.weight.numel()
        }
        SEEN.append((phase, len(tables)))

    def table(self, name: str, columns: Any, rows: Any) -> None:
        """Nothing."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["steca", "eto"])
def test_one_model_is_in_memory_while_a_stage_trains(tmp_path: Path, method: str) -> None:
    gc.collect()
    others = {m.weight.data_ptr() for m in gc.get_objects() if isinstance(m, torch.nn.Embedding)}
    SEEN.clear()
    overrides = ["logger=custom", "logger.custom.name=tests.runs.test_memory:ModelsAlive"]
    play(tmp_path / "run", method, *overrides, "agent.train.log_every_steps=1", "agent.warm_up.log_every_steps=1")
    trained = [(phase, count - len(others)) for phase, count in SEEN if phase in ("warm_up", "train")]
    assert {phase for phase, _ in trained} == {"warm_up", "train"}
    assert {count for _, count in trained} == {1}, trained
