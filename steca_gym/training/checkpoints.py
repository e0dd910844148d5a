"""Loading, saving and resuming, shared by all trainers.

A training writes into its output folder:

- ``checkpoints/checkpoint-N/``: what a resumption needs. Each checkpoint has a manifest (``complete.json``) that is
  written after everything else; a checkpoint whose files do not match it is not used.
- ``checkpoints/belongs-to``: digest of what is trained (model, samples, settings). Checkpoints of another training are
  removed.
- the model, and last ``training.json``: the digest and the report. A second call finds it and trains nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from steca_gym.errors import CheckpointError, TrainingError
from steca_gym.files import write_atomically, write_json
from steca_gym.training.base import TrainReport

_LOG = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""folder inside the output folder from which an interrupted training resumes; removed when the training is done"""

FINISHED = "training.json"
"""file beside the weights: the report of the training that made them, and the digest of what was trained"""

MANIFEST = "complete.json"
"""file in a checkpoint, written last: size and CRC-32 of every other file"""

_CHUNK_BYTES = 1 << 22


# -- models -------------------------------------------------------------------------------------------------


def load_model(model: str | Path | Any, tokenizer: Any = None) -> tuple[Any, Any]:
    """Load a model in float32 and its tokenizer, and refuse now what could not be saved or continued later.

    Args:
        model: a folder or name for ``from_pretrained``, or a model, which is returned as it is.
        tokenizer: tokenizer of the model; None: loaded from the model's folder.

    Raises:
        CheckpointError: no causal language model, weights that do not cover it, no tokenizer, no pad token, or a
            generation config that cannot be repaired.
    """
    if isinstance(model, str | Path):
        if tokenizer is None:
            tokenizer = _load_tokenizer(model)
        model = _load_weights(model)
    elif tokenizer is None:
        raise CheckpointError("a model without its tokenizer; pass tokenizer=, or the folder that holds both")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise CheckpointError("the tokenizer has neither a pad nor an eos token; set tokenizer.pad_token")
    _check_embeddings(model, tokenizer)
    repair_generation_config(model)
    return model, tokenizer


def _load_tokenizer(folder: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and more for unusable folders
        raise _unusable(folder, error) from error


def _load_weights(folder: str | Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from steca_gym.training.quiet import quiet_transformers

    try:
        with quiet_transformers():
            loaded, info = AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportGeneralTypeIssues]
                str(folder), dtype=torch.float32, output_loading_info=True, trust_remote_code=False
            )
    except Exception as error:
        raise _unusable(folder, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise CheckpointError(
            f"the weights in {str(folder)!r} do not cover the model of its config.json: {len(missing)} tensors are "
            f"missing, such as {missing[0]!r}, and would be random; use the config.json that belongs to the weights"
        )
    dropped = sorted(key for key in info["unexpected_keys"] if re.search(r"\.\d+\.", key))
    if dropped:
        raise CheckpointError(
            f"the config.json in {str(folder)!r} describes fewer layers than its weights hold: {len(dropped)} tensors "
            f"are not used, such as {dropped[0]!r}; use the config.json that belongs to the weights"
        )
    return loaded


def _unusable(folder: str | Path, error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(
        f"cannot load a causal language model from {str(folder)!r}: {reason}; expected a folder written by "
        "save_pretrained with its tokenizer"
    )


def _check_embeddings(model: Any, tokenizer: Any) -> None:
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embeddings is not None and len(tokenizer) > embeddings.weight.shape[0]:
        raise CheckpointError(
            f"the tokenizer has {len(tokenizer)} tokens and the model has embeddings for "
            f"{embeddings.weight.shape[0]}; use the model's own tokenizer, or call model.resize_token_embeddings"
        )


def check_positions(model: Any, longest: int) -> None:
    """Raise TrainingError for samples that are longer than a model's table of learned positions (GPT-2, OPT, ...).

    Rotary and relative positions have no table: longer samples are unusual for such a model, but they can be trained.
    """
    config = getattr(model, "config", None)
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or longest <= limit:
        return
    words = model.get_input_embeddings()
    # Some tables begin with a few rows that no position uses.
    tables = [m for m in model.modules() if m is not words and limit <= getattr(m, "num_embeddings", -1) <= limit + 4]
    if tables:
        raise TrainingError(
            f"a sample has {longest} tokens and the model has learned positions for {limit}; set max_length={limit}"
        )


def repair_generation_config(model: Any) -> None:
    """Make the generation config one that transformers will save; what it means stays the same.

    Some published models set a temperature while ``do_sample`` is false. Greedy decoding ignores such settings, and
    ``save_pretrained`` refuses them: they go back to their defaults.

    Raises:
        CheckpointError: a generation config that is invalid for another reason.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    default = type(config)()
    ignored = [] if config.do_sample is True else [*_SAMPLING_FIELDS]
    if config.num_beams in (None, 1):
        ignored += _BEAM_FIELDS
    try:
        config.validate(strict=True)
        return
    except ValueError:
        changed = [name for name in ignored if getattr(config, name, None) != getattr(default, name, None)]
        for name in changed:
            setattr(config, name, getattr(default, name, None))
    try:
        config.validate(strict=True)
    except ValueError as error:
        raise CheckpointError(
            f"the model's generation_config.json is not valid, so the trained model could not be saved: "
            f"{' '.join(str(error).split())[:200]}; correct the file beside the weights"
        ) from error
    _LOG.warning(
        "generation_config.json: %s reset to their defaults (decoding ignored them, and they cannot be saved)",
        ", ".join(changed),
    )


_SAMPLING_FIELDS = ("temperature", "top_p", "min_p", "top_h", "typical_p", "top_k", "epsilon_cutoff", "eta_cutoff")
_BEAM_FIELDS = ("early_stopping", "length_penalty")


def save_model(model: Any, tokenizer: Any, folder: Path, *, weights: dict[str, Any] | None = None) -> None:
    """Write model and tokenizer so that the folder never looks complete before it is.

    The files are written to a folder beside and moved in, the weights last. ``weights``: in place of the model's own,
    which may be sharded over processes.
    """
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part, state_dict=weights)
        tokenizer.save_pretrained(part)
        for path in sorted(part.iterdir(), key=lambda p: (p.suffix in (".safetensors", ".bin"), p.name)):
            _move(path, folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _move(source: Path, target: Path) -> None:
    # A tokenizer with several chat templates is saved with a folder of templates.
    if source.is_dir() and target.is_dir():
        shutil.rmtree(target)
    source.replace(target)


# -- what a training is of ------------------------------------------------------------------------------------


def training_digest(model: Any, samples: Iterable[object], settings: object) -> str:
    """A digest that is equal where a checkpoint belongs to the training that is asked for.

    64 numbers of each tensor are read: enough to tell two models apart, at no cost.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
    digest.update(model_digest(model).encode())
    for sample in samples:
        digest.update(repr(sample).encode())
    return digest.hexdigest()


def model_digest(model: Any) -> str:
    """A digest of a model's weights; see ``training_digest``."""
    digest = hashlib.blake2b(digest_size=12)
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()
        picked = numbers[:: max(1, numbers.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + picked.numpy().tobytes())
    return digest.hexdigest()


# -- a finished training ----------------------------------------------------------------------------------------


def write_finished(folder: Path, digest: str, report: TrainReport) -> None:
    """Mark the training in the folder as done."""
    note = {"of": digest, "report": {**report.as_dict(), "metrics": dict(report.metrics)}}
    write_json(folder / FINISHED, note)


def read_finished(folder: Path, digest: str) -> TrainReport | None:
    """The report of this very training if its model is in the folder already."""
    try:
        note = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
        if note["of"] != digest or not (folder / "config.json").exists():
            return None
        known = {field.name for field in dataclasses.fields(TrainReport)}
        return TrainReport(**{**{k: v for k, v in note["report"].items() if k in known}, "model": folder})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# -- checkpoints ---------------------------------------------------------------------------------------------


def write_manifest(folder: Path) -> None:
    """Mark a checkpoint as complete: its files are on the disk, and the manifest names their sizes and checksums."""
    files = {}
    for path in _files(folder):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _crc32(path)]
    write_json(folder / MANIFEST, files)


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None: it is complete."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {str(name): (int(size), int(crc)) for name, (size, crc) in files.items()}
    except FileNotFoundError:
        return "it was not written to its end"
    except (OSError, ValueError, TypeError, AttributeError):
        return f"its {MANIFEST} cannot be read"
    for name, (size, crc) in listed.items():
        path = folder / name
        try:
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes where {size} were written"
            if _crc32(path) != crc:
                return f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST and p.suffix != ".part")


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
    return crc


def claim(checkpoints: Path, digest: str) -> None:
    """Make ``checkpoints`` the folder of this training; checkpoints of another one are removed."""
    note = checkpoints / "belongs-to"
    try:
        if note.read_text(encoding="utf-8") == digest:
            return
    except (OSError, UnicodeDecodeError):
        pass
    shutil.rmtree(checkpoints, ignore_errors=True)
    checkpoints.mkdir(parents=True)
    write_atomically(note, digest)


def newest_complete(checkpoints: Path) -> Path | None:
    """The newest complete checkpoint; damaged ones are removed, with one line in the log each."""
    found = [p for p in checkpoints.glob("checkpoint-*") if p.name.rpartition("-")[2].isdecimal()]
    for path in sorted(found, key=step_of, reverse=True):
        wrong = damage(path)
        if wrong is None:
            return path
        discard(path, wrong)
    return None


def discard(checkpoint: Path, reason: str) -> None:
    """Remove a checkpoint that cannot be used, and say so."""
    _LOG.warning(
        "checkpoint %s is not used: %s; training resumes from an earlier one, or starts again", checkpoint, reason
    )
    shutil.rmtree(checkpoint, ignore_errors=True)


def step_of(checkpoint: Path) -> int:
    """The optimizer step of ``checkpoint-N``."""
    return int(checkpoint.name.rpartition("-")[2])


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder as a whole: after an interruption, ``folder`` holds the old content or the new.

    ``write`` fills an empty folder beside it. Read with ``complete_folder``, which also finds the old content where an
    interruption came between the two renames.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    part, old = _beside(folder, "part"), _beside(folder, "old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        write(part)
        write_manifest(part)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def complete_folder(folder: Path) -> Path:
    """Where what ``replace_folder`` wrote is; raises CheckpointError where nothing complete is left."""
    reasons = []
    for path in (folder, _beside(folder, "old")):
        wrong = damage(path) if path.is_dir() else "there is no such folder"
        if wrong is None:
            return path
        reasons.append(wrong)
    raise CheckpointError(
        f"cannot restore a training from {str(folder)!r}: {reasons[0]}; expected a folder written by save(); "
        "remove it to start again"
    )


def was_saved(folder: Path) -> bool:
    """Whether ``replace_folder`` ever wrote the folder to its end, also where a kill came between its two renames."""
    return folder.exists() or _beside(folder, "old").exists()


def forget_saved(folder: Path) -> None:
    """Remove all that ``replace_folder`` wrote."""
    for path in (folder, _beside(folder, "part"), _beside(folder, "old")):
        shutil.rmtree(path, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed ``replace_folder`` has left beside the folder, once the folder itself is whole."""
    if folder.exists():
        for suffix in ("part", "old"):
            shutil.rmtree(_beside(folder, suffix), ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f".{folder.name}.{suffix}")


# -- errors ----------------------------------------------------------------------------------------------------


def check_finite(model: Any) -> None:
    """Raise TrainingError where a trained weight is not a finite number."""
    import torch

    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(
                f"weights of {name!r} are not finite numbers and were not saved; "
                "lower the learning rate or train in fp32"
            )
