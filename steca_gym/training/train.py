"""Reward-weighted maximum likelihood on trajectories: from samples to a model folder.

Knows checkpoints, resumption and what can go wrong. Knows TRL through ``trl_adapter`` only.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steca_gym.agent import Prompt
from steca_gym.errors import CheckpointError, StorageError, TrainingError
from steca_gym.training.quiet import quiet_transformers
from steca_gym.training.samples import EncodedSamples, encode_samples
from steca_gym.training.settings import TrainReport, TrainSettings
from steca_gym.trajectory import WeightedTrajectory

CHECKPOINTS = "checkpoints"
"""folder inside ``output_dir`` from which a killed training goes on; gone once the training is done"""

FINISHED = "training.json"
"""file beside the weights: the report of the training that made them, and what it was a training of"""


def train(
    model: str | Path | Any,
    samples: Sequence[WeightedTrajectory],
    *,
    prompt: Prompt,
    settings: TrainSettings,
    output_dir: Path,
    tokenizer: Any = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> TrainReport:
    """Minimise ``-E[R(e) * log pi(e | prefix)]`` over the trainable turns (STeCa, arXiv 2502.14276).

    With all weights at 1 it is plain supervised fine-tuning.

    A second call with the same model, samples and settings finds the training done and returns its report.

    Where ``WORLD_SIZE`` processes call it together (``torchrun``), each passes the same arguments.

    Args:
        model: a folder or name that transformers loads, or a model (which is then trained in place).
        samples: trajectories with their weights R(e).
        prompt: what stands before every episode; never trained on.
        settings: how to train.
        output_dir: where the trained model goes, as ``save_pretrained`` writes it. When a training of the
            same settings and samples was killed there and left checkpoints, it goes on from the last one.
        tokenizer: of the model; None: loaded from the model's folder.
        on_log: called every ``log_every_steps`` with ``step``, ``max_steps``, ``loss``, ``learning_rate`` and
            ``grad_norm``; in the first process only.

    Raises:
        TrainingError: nothing to train on, or a loss or weights that are not finite; checkpoints are kept.
        StorageError: the disk is full or not writable; checkpoints are kept.
        CheckpointError: a folder that is no model, or a tokenizer without a usable chat template.
    """
    start = time.perf_counter()
    with quiet_transformers():
        loaded, tokenizer = _load(model, tokenizer)
        encoded = encode_samples(tokenizer, samples, prompt, max_length=settings.max_length, loss_on=settings.loss_on)
        with storage_errors(output_dir), _undisturbed(loaded):
            return _train(loaded, tokenizer, encoded, settings, output_dir, on_log, start)


def _train(
    model: Any,
    tokenizer: Any,
    encoded: EncodedSamples,
    settings: TrainSettings,
    output_dir: Path,
    on_log: Callable[[dict[str, float]], None] | None,
    start: float,
) -> TrainReport:
    from steca_gym.training import trl_adapter

    checkpoints = output_dir / CHECKPOINTS
    digest = _digest(model, encoded, settings)
    done = _finished(output_dir, digest)
    if done is not None:
        return done
    resume = _resumable(checkpoints, digest)
    with trl_adapter.small_attention_in_float32(model):
        bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and _bf16_is_faster(model, encoded, settings.per_device_batch_size)
        )
    trainer, clock = trl_adapter.make_trainer(
        model,
        tokenizer,
        encoded.samples,
        settings=settings,
        bf16=bf16,
        checkpoints=checkpoints,
        on_log=on_log,
    )
    world_size = trainer.accelerator.num_processes
    expected = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != expected:
        raise TrainingError(
            f"expected {expected} processes (WORLD_SIZE), got {world_size} in the trainer; start with "
            "`torchrun --nproc_per_node N`"
        )
    loop_start = time.perf_counter()
    with trl_adapter.small_attention_in_float32(model):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    train_seconds = time.perf_counter() - loop_start
    trl_adapter.check_finite(trainer.model)
    first = trainer.is_world_process_zero()
    if first:
        trained: Any = trainer.model
        final = trained.merge_and_unload() if settings.lora_rank is not None else trained
        save_model(final, tokenizer, output_dir)
    trainer.accelerator.wait_for_everyone()
    losses = [float(loss) for loss in trainer.losses]
    tenth = max(1, len(losses) // 10)
    report = TrainReport(
        model=output_dir,
        num_steps=trainer.state.global_step,
        num_samples=len(encoded.samples),
        num_cut=encoded.num_cut,
        num_dropped=encoded.num_dropped,
        num_tokens=trainer.num_tokens,
        num_loss_tokens=trainer.num_loss_tokens,
        padding_fraction=1 - trainer.num_tokens / max(trainer.num_positions, 1),
        first_loss=sum(losses[:tenth]) / tenth if losses else float("nan"),
        last_loss=sum(losses[-tenth:]) / tenth if losses else float("nan"),
        seconds=time.perf_counter() - start,
        train_seconds=train_seconds,
        precision="bf16" if bf16 else "fp32",
        world_size=world_size,
        stopped_by="max_seconds" if clock.stopped else "steps",
        resumed_from_step=int(resume.name.rpartition("-")[2]) if resume else 0,
    )
    if first:
        # The note comes before the checkpoints go: killed in between, the next call finds the one or the other.
        _write_note(output_dir / FINISHED, {"of": digest, "report": report.as_dict()})
        shutil.rmtree(checkpoints, ignore_errors=True)
    return report


def _write_note(path: Path, note: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(note, indent=1), encoding="utf-8")
    part.replace(path)


def _finished(folder: Path, digest: str) -> TrainReport | None:
    """The report of this very training where its model lies in the folder already."""
    try:
        note = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if note.get("of") != digest or not (folder / "config.json").exists():
        return None
    known = {field.name for field in dataclasses.fields(TrainReport)}
    return TrainReport(**{**{k: v for k, v in note["report"].items() if k in known}, "model": folder})


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write model and tokenizer so that the folder is never taken for whole before it is.

    The files are written beside and moved in, the weights last.
    """
    part = folder / ".part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        for path in sorted(part.iterdir(), key=lambda p: p.suffix in (".safetensors", ".bin")):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _load(model: str | Path | Any, tokenizer: Any) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if isinstance(model, str | Path):
        try:
            if tokenizer is None:
                tokenizer = AutoTokenizer.from_pretrained(str(model))
            loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
        except (OSError, ValueError) as error:
            first_line = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"cannot load a causal language model from {str(model)!r}: {first_line}; expected a folder "
                "written by save_pretrained with its tokenizer"
            ) from error
    else:
        loaded = model
        if tokenizer is None:
            raise CheckpointError("a model without its tokenizer; pass tokenizer=, or the folder that holds both")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token_id is None:
        raise CheckpointError("the tokenizer has neither a pad nor an eos token; set tokenizer.pad_token")
    return loaded, tokenizer


def _digest(model: Any, encoded: EncodedSamples, settings: TrainSettings) -> str:
    """Equal where a checkpoint belongs to the training that is asked for.

    Of each of the model's tensors 64 numbers are looked at: enough to tell two models apart, at no cost.
    """
    digest = hashlib.blake2b(repr(settings).encode(), digest_size=12)
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()
        picked = numbers[:: max(1, numbers.numel() // 64)][:64].float().cpu()
        digest.update(f"{name}{tuple(parameter.shape)}".encode() + picked.numpy().tobytes())
    for sample in encoded.samples:
        digest.update(repr((sample.input_ids, sample.labels, sample.weight)).encode())
    return digest.hexdigest()


def _resumable(checkpoints: Path, digest: str) -> Path | None:
    """The newest whole checkpoint of this very training; what belongs to another one is removed."""
    note = checkpoints / "belongs-to"
    first = int(os.environ.get("RANK", "0")) == 0
    if note.exists() and note.read_text() == digest:
        # transformers writes trainer_state.json last
        whole = [p for p in checkpoints.glob("checkpoint-*") if (p / "trainer_state.json").exists()]
        return max(whole, key=lambda p: int(p.name.rpartition("-")[2]), default=None)
    if first:
        shutil.rmtree(checkpoints, ignore_errors=True)
        checkpoints.mkdir(parents=True)
        note.write_text(digest)
    return None


def _bf16_is_faster(model: Any, encoded: EncodedSamples, batch_size: int) -> bool:
    """Time forward and backward passes of each kind on the longest samples."""
    import torch

    from steca_gym.training.samples import Collator

    longest = sorted(encoded.samples, key=lambda s: -len(s.input_ids))[:batch_size]
    batch = Collator(longest, 0)([{"index": i} for i in range(len(longest))])
    ids = batch["input_ids"].to(model.device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for bf16 in (False, True) * 4:
        begin = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seconds[bf16].append(time.perf_counter() - begin)
        model.zero_grad()
    # The first of each kind warms up; of the others the fastest counts, against disturbances.
    return min(seconds[True][1:]) < min(seconds[False][1:])


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Take the training's changes off a model that the caller goes on using."""
    held = "forward" in model.__dict__
    mode = model.training
    try:
        yield
    finally:
        if not held:
            model.__dict__.pop("forward", None)
        model.train(mode)


_STORAGE_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO})


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Turn failed writes into one line; safetensors reports them with a class of its own."""
    from safetensors import SafetensorError

    def explain(error: Exception) -> StorageError:
        return StorageError(
            f"cannot write the model to {str(folder)!r}: {error}; free space (or choose another folder) and "
            "run the same command again: what was saved before is kept"
        )

    try:
        yield
    except OSError as error:
        if error.errno in _STORAGE_ERRNOS:
            raise explain(error) from error
        raise
    except SafetensorError as error:
        if "os error" in str(error).lower() or "i/o" in str(error).lower():
            raise explain(error) from error
        raise
    except RuntimeError as error:
        # torch.save of the optimizer state: "enforce fail at inline_container.cc ... file write failed"
        if "inline_container" in str(error) or "write failed" in str(error).lower():
            raise explain(error) from error
        raise
