"""What a model folder was trained on, stored next to its weights: ``steca.json``.

Evaluations read it: a model is never evaluated on games that trained it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steca_gym.errors import CheckpointError
from steca_gym.files import parse_json, write_json

if TYPE_CHECKING:
    from steca_gym.trajectory import WeightedTrajectory

PROVENANCE_FILE = "steca.json"
SAMPLES_FILE = "samples.json"


def record(folder: Path, *, fingerprint: str, task_ids: Iterable[str], base: Path | None = None) -> None:
    """Leave beside the weights in which environment, and on which games, they were trained.

    Games are kept as digests of 12 hex digits: a few dozen kB for thousands of them.

    Args:
        folder: a model folder.
        fingerprint: of the environment.
        task_ids: games whose trajectories were trained on.
        base: folder of the model that the training began with; its games count as this one's too.
    """
    known = set(_read(base).get("games", [])) if base is not None else set()
    note = {"fingerprint": fingerprint, "games": sorted(known | {_digest(t) for t in task_ids})}
    write_json(folder / PROVENANCE_FILE, note, indent=None)


def record_samples(folder: Path, samples: Iterable[WeightedTrajectory], *, trail: str = "", base: str = "") -> None:
    """Leave beside the weights which samples trained them, for ``steca trace``.

    Args:
        folder: a model folder.
        samples: in the order of the training data.
        trail: the last digest of the run's audit trail at the training; empty: nobody had decided.
        base: name of the model that the training began with.
    """
    rows = [
        {
            "trajectory_id": s.trajectory.trajectory_id or s.trajectory.with_id().trajectory_id,
            "task_id": s.trajectory.task_id,
            "kind": s.kind,
            "weight": s.weight,
            **({"calibration_id": s.calibration_id} if s.calibration_id else {}),
        }
        for s in samples
    ]
    write_json(folder / SAMPLES_FILE, {"trail": trail, "base": base, "samples": rows}, indent=None)


def read_samples(folder: Path) -> dict[str, Any] | None:
    """What ``record_samples`` wrote; None where there is none. Raises CheckpointError for a damaged file."""
    path = folder / SAMPLES_FILE
    try:
        note = parse_json(path.read_bytes())
        texts = ("trajectory_id", "task_id", "kind")
        if not isinstance(note, dict) or not isinstance(note.get("samples"), list):
            raise ValueError("the list of samples is missing")
        for s in note["samples"]:
            if not isinstance(s, dict) or not all(isinstance(s.get(key), str) for key in texts):
                raise ValueError(f"a sample must have the texts {', '.join(texts)}")
            weight = s.get("weight")
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or abs(weight) > 1e300:
                raise ValueError("a sample's weight must be a number")
            if not isinstance(s.get("calibration_id", ""), str):
                raise ValueError("a sample's calibration_id must be text")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"cannot read {str(path)!r}: {error}; expected the samples that a training of steca-gym wrote"
        ) from error
    return note


def check_environment(folder: Path, fingerprint: str) -> None:
    """Raise CheckpointError where a model was trained in another world (other data of one world is fine)."""
    trained = str(_read(folder).get("fingerprint", ""))
    if trained and _world(trained) != _world(fingerprint):
        raise CheckpointError(
            f"model {str(folder)!r} was trained in {trained!r}, got environment {fingerprint!r}; "
            f"use the environment it was trained in, or remove its {PROVENANCE_FILE} to insist"
        )


def trained_on(folder: Path, task_ids: Sequence[str]) -> list[str]:
    """Those of the games that the model in the folder was trained on, as far as it is known."""
    games = set(_read(folder).get("games", []))
    return [t for t in task_ids if _digest(t) in games]


def _world(fingerprint: str) -> str:
    return fingerprint.partition("+")[0].partition("/")[0]


def _digest(task_id: str) -> str:
    return hashlib.blake2b(task_id.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def _read(folder: Path) -> dict[str, Any]:
    path = folder / PROVENANCE_FILE
    try:
        note = parse_json(path.read_bytes())
        if not isinstance(note, dict):
            raise ValueError("it holds no record of a training")
        if not isinstance(note.get("fingerprint", ""), str):
            raise ValueError("its fingerprint must be text")
        games = note.get("games", [])
        if not isinstance(games, list) or not all(isinstance(g, str) for g in games):
            raise ValueError("its games must be a list of texts")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read {str(path)!r}: {error}; expected what a training of steca-gym wrote; remove it to continue"
        ) from error
    return note
