"""Trajectories as a Minari dataset (HDF5), and back; written and read by Minari itself."""

from __future__ import annotations

import itertools
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steca_gym.chat.control_tokens import encodable
from steca_gym.errors import ConfigError, DataError
from steca_gym.files import parse_json, storage_errors
from steca_gym.interop.exports.rows import Row, RunData

_EPISODES_PER_WRITE = 200
_AUTHOR = "steca-gym"
MAX_TEXT = 1_000_000
"""characters of a text in the spaces that the dataset declares"""


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
        import PIL  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Minari datasets need minari, h5py and pillow, not all installed; run `pip install 'steca-gym[minari]'`"
        ) from error
    return minari


@contextmanager
def _root(folder: Path) -> Iterator[None]:
    """Minari takes the folder of its datasets from the environment."""
    name, before = "MINARI_DATASETS_PATH", os.environ.get("MINARI_DATASETS_PATH")
    os.environ[name] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def write_minari(data: RunData, to: Path) -> list[Path]:
    """Write the dataset ``steca-v0`` under ``to``, which ``MINARI_DATASETS_PATH`` then names; returns its folder.

    Observations and actions are texts, rewards the increase of the score. An episode's ``options`` hold its task, its
    ``infos`` the thought of each turn and the loss mask; trajectories without a step are left out.

    The dataset is written beside and moved in as a whole. An earlier export of the same run is replaced.

    Raises:
        ConfigError: minari is not installed.
        DataError: the folder holds another dataset of this name, or the run has no trajectory with a step.
        StorageError: the disk is full.
    """
    minari = _minari()
    from gymnasium.spaces import Text

    folder = to / "steca-v0"
    description = f"{', '.join(data.kinds)} of {data.folder.name}, seed {data.seed}"
    if folder.exists() and not _is_ours(folder, description):
        raise DataError(f"{str(folder)!r} exists and is no export of this run; remove it or give another to=FOLDER")
    part, old = to / ".steca-v0.part", to / ".steca-v0.old"
    episodes = (_episode(minari, row) for row in data.rows() if row.trajectory.steps)
    dataset: Any = None
    with _root(part.resolve()), storage_errors("the Minari dataset", to), warnings.catch_warnings():
        # It misses a Gymnasium environment that would play the dataset; the worlds here are named in its description.
        warnings.filterwarnings("ignore", message=".*(eval_env|env_spec).*", category=UserWarning)
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir(parents=True)
        while block := list(itertools.islice(episodes, _EPISODES_PER_WRITE)):
            if dataset is not None:
                dataset.update_dataset_from_buffer(block)
                continue
            dataset = minari.create_dataset_from_buffers(
                "steca-v0",
                block,
                observation_space=Text(MAX_TEXT, min_length=0),
                action_space=Text(MAX_TEXT, min_length=0),
                algorithm_name=data.method,
                author=_AUTHOR,
                author_email="",
                code_permalink="",
                description=description,
                data_format="hdf5",
            )
        if dataset is not None:
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.replace(old)
            (part / "steca-v0").replace(folder)
        for path in (part, old):
            shutil.rmtree(path, ignore_errors=True)
    if dataset is None:
        raise DataError(f"{str(data.folder.path)!r} holds no trajectory with a step; run a stage of it first")
    return [folder]


def _is_ours(folder: Path, description: str) -> bool:
    """Whether a dataset was exported from the same run."""
    try:
        held = parse_json((folder / "data" / "metadata.json").read_bytes())
    except (OSError, ValueError):
        return False
    # Minari keeps the authors as a list.
    return isinstance(held, dict) and held.get("author") == [_AUTHOR] and held.get("description") == description


def _episode(minari: Any, row: Row) -> Any:
    t = row.trajectory
    scores = [0.0, *(s.score for s in t.steps)]
    last = len(t.steps) - 1
    return minari.data_collector.EpisodeBuffer(
        seed=t.seed,
        options={"task_id": _text(t.task_id), "kind": row.kind, "weight": row.weight, "trajectory_id": t.trajectory_id},
        observations=[_text(t.first_observation), *(_text(s.observation) for s in t.steps)],
        actions=[_text(s.action) for s in t.steps],
        rewards=[after - before for before, after in itertools.pairwise(scores)],
        terminations=[i == last and t.status == "terminated" for i in range(len(t.steps))],
        truncations=[i == last and t.status != "terminated" for i in range(len(t.steps))],
        infos={
            "thought": ["", *(_text(s.thought) for s in t.steps)],
            "train": [False, *(s.trainable for s in t.steps)],
            "valid": [True, *(s.valid for s in t.steps)],
        },
    )


def _text(text: str) -> str:
    """HDF5 holds UTF-8 without NUL."""
    return encodable(text).replace("\0", "\ufffd")


def is_minari(path: Path) -> bool:
    """Whether a folder holds a Minari dataset."""
    return (path / "data" / "metadata.json").is_file()


def read_minari(path: Path) -> Iterator[dict[str, Any]]:
    """Read the episodes of a dataset with texts: task, seed, thoughts, actions and observations of each.

    Raises:
        ConfigError: minari is not installed.
        DataError: the folder cannot be read, or its actions are no texts.
    """
    minari = _minari()
    from gymnasium.spaces import Text

    try:
        dataset = minari.MinariDataset(path / "data")
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise DataError(
            f"cannot read {str(path)!r} as a Minari dataset: {' '.join(str(error).split())[:200]}"
        ) from error
    if not (isinstance(dataset.action_space, Text) and isinstance(dataset.observation_space, Text)):
        raise DataError(f"{str(path)!r}: observations and actions must be texts, got {dataset.action_space!r:.80}")
    for index in dataset.episode_indices:
        (known,) = dataset.storage.get_episode_metadata([index])
        episode = dataset[int(index)]
        thoughts = list((episode.infos or {}).get("thought", [""] * (len(episode.actions) + 1)))[1:]
        yield {
            "task_id": str(dict(known.get("options") or {}).get("task_id", "")),
            "seed": int(known.get("seed") or 0),
            "thoughts": [t.decode() if isinstance(t, bytes) else str(t) for t in thoughts],
            "actions": list(map(str, episode.actions)),
            "observations": list(map(str, episode.observations)),
        }


__all__ = ["is_minari", "read_minari", "write_minari"]
