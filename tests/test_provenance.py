"""Signatures of model folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from steca_gym.errors import CheckpointError
from steca_gym.provenance import PROVENANCE_FILE, check_environment, record, trained_on


def test_games_of_every_training_are_kept(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    record(first, fingerprint="house/1+abc", task_ids=["a", "b"])
    record(second, fingerprint="house/1+abc", task_ids=iter(["c", "ü\udc80"]), base=first)
    assert trained_on(second, ["a", "c", "d", "ü\udc80"]) == ["a", "c", "ü\udc80"]
    assert trained_on(first, ["c"]) == []


def test_other_data_of_one_world_is_fine_and_another_world_is_not(tmp_path: Path) -> None:
    record(tmp_path, fingerprint="house/1+abc", task_ids=[])
    check_environment(tmp_path, "house/2+def")
    with pytest.raises(CheckpointError, match="was trained in 'house/1\\+abc', got environment 'lab/1\\+abc'"):
        check_environment(tmp_path, "lab/1+abc")


def test_a_folder_without_provenance_says_nothing(tmp_path: Path) -> None:
    check_environment(tmp_path, "house/1+abc")
    assert trained_on(tmp_path, ["a"]) == []


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PROVENANCE_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=f"{PROVENANCE_FILE}.*remove it"):
        trained_on(tmp_path, ["a"])


@pytest.mark.parametrize(
    "text", ['{"games": 5}', '{"games": [["a"]]}', '{"fingerprint": []}', "[" * 3000, '{"games": [1e999]}', "\udcff"]
)
def test_a_record_of_other_types_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / PROVENANCE_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=f"{PROVENANCE_FILE}.*remove it"):
        trained_on(tmp_path, ["a"])
