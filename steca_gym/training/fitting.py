"""From a model folder and an objective to a trained folder: resuming, precision, saving, reporting.

``WeightedSFT`` and ``Preference`` differ in their samples and their loss only; the rest is here.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from steca_gym.errors import StecaError
from steca_gym.files import storage_errors
from steca_gym.training import checkpoints
from steca_gym.training.base import OnLog, TrainReport
from steca_gym.training.quiet import quiet_transformers
from steca_gym.training.settings import OptimizationSettings, in_steps, padding_multiple

if TYPE_CHECKING:
    import torch

    from steca_gym.training.trl_adapter import Loss, NumItems

_LOG = logging.getLogger(__name__)

_SAME_RESULT: dict[str, Any] = {"log_every_steps": 1, "save_every_steps": None, "num_checkpoints_kept": 1}
"""settings that do not change what is trained: with other ones, a training resumes all the same"""


class Collate(Protocol):
    """Makes batches of rows ``{"index": i}``."""

    pad_to_multiple_of: int
    """tokens; a batch's length is a multiple of it. Set before training"""

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch with ``input_ids``, ``attention_mask`` and ``labels``, right-padded."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """What is trained: encoded samples and their loss."""

    samples: Sequence[object]
    """everything that decides the result; their ``repr`` goes into the training's digest"""
    lengths: Sequence[int]
    """tokens of each sample"""
    num_cut: int
    num_dropped: int
    collate: Collate
    loss: Loss
    num_items: NumItems
    prepare: Callable[[Any, bool], None] | None = None
    """called with the model and whether it trains in bfloat16, before the model changes"""


def fit_model(
    model: str | Path | Any,
    tokenizer: Any,
    make_objective: Callable[[Any], Objective],
    *,
    settings: OptimizationSettings,
    out: Path,
    on_log: OnLog | None,
) -> TrainReport:
    """Train and save; resume where checkpoints of this very training are in ``out``.

    Args:
        model: a folder or name that transformers loads, or a model, which is trained in place.
        tokenizer: None: loaded from the model's folder.
        make_objective: makes the objective with the tokenizer.
        settings: how to train.
        out: folder of the result.
        on_log: called every ``log_every_steps``, in the first process.

    Raises:
        TrainingError: nothing to train on, or a loss or weights that are not finite; checkpoints are kept.
        StorageError: the disk is full or not writable; checkpoints are kept.
        CheckpointError: no usable model or tokenizer.
    """
    start = time.perf_counter()
    with quiet_transformers(), storage_errors("the model", out):
        loaded, tokenizer = checkpoints.load_model(model, tokenizer)
        objective = make_objective(tokenizer)
        checkpoints.check_positions(loaded, max(objective.lengths, default=0))
        settings = in_steps(settings, objective.lengths, int(os.environ.get("WORLD_SIZE", "1")))
        of = dataclasses.replace(settings, **_SAME_RESULT)
        digest = checkpoints.training_digest(loaded, objective.samples, of)
        done = checkpoints.read_finished(out, digest)
        if done is not None:
            return done
        with _undisturbed(loaded):
            while True:
                spare = _Spare(model, loaded, out)
                report = _attempt(loaded, tokenizer, objective, settings, out, digest, on_log, start, spare)
                if report is not None:
                    return report
                loaded = spare.model(tokenizer)


class _Spare:
    """The model as it was, for a second attempt where a checkpoint turns out to be unusable."""

    def __init__(self, given: str | Path | Any, loaded: Any, out: Path) -> None:
        self._given = given
        self._copy: Any = None
        if not isinstance(given, str | Path) and any((out / checkpoints.CHECKPOINTS).glob("checkpoint-*")):
            self._copy = copy.deepcopy(loaded)

    def model(self, tokenizer: Any) -> Any:
        return self._copy if self._copy is not None else checkpoints.load_model(self._given, tokenizer)[0]


def _attempt(
    model: Any,
    tokenizer: Any,
    objective: Objective,
    settings: OptimizationSettings,
    out: Path,
    digest: str,
    on_log: OnLog | None,
    start: float,
    spare: _Spare,
) -> TrainReport | None:
    """One training; None where the checkpoint that it began with could not be loaded and was removed."""
    from steca_gym.training import trl_adapter
    from steca_gym.training.heads import small_attention_in_float32

    folder = out / checkpoints.CHECKPOINTS
    lengths = objective.lengths
    with small_attention_in_float32(model):
        bf16 = settings.precision == "bf16" or (
            settings.precision == "auto" and _bf16_is_faster(model, objective, settings.per_device_batch_size)
        )
        on_cpu = model.device.type == "cpu"
        objective.collate.pad_to_multiple_of = padding_multiple(settings, bf16=bf16, on_cpu=on_cpu)
        if objective.prepare is not None:
            objective.prepare(model, bf16)
    trainer, clock = trl_adapter.make_trainer(
        model,
        tokenizer,
        lengths=lengths,
        collate=objective.collate,
        loss=objective.loss,
        num_items=objective.num_items,
        settings=settings,
        bf16=bf16,
        folder=folder,
        on_log=on_log,
    )
    first = trainer.is_world_process_zero()
    resume = trl_adapter.from_first_process(trainer, lambda: _resumable(folder, digest))
    if resume is not None:
        _LOG.info("training resumes from %s", resume)
    loop_start = time.perf_counter()
    try:
        with small_attention_in_float32(model):
            if resume is not None:
                trainer.resume_history(resume)
            trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    except StecaError:
        raise
    except Exception as error:
        if resume is None or trainer.started:
            raise
        if first:
            checkpoints.discard(resume, " ".join(str(error).split())[:120] or type(error).__name__)
        return None
    train_seconds = time.perf_counter() - loop_start
    checkpoints.check_finite(trainer.model)
    weights = trl_adapter.gathered_weights(trainer)  # in every process, also in those that do not write
    if first:
        checkpoints.save_model(trl_adapter.merged(trainer), tokenizer, out, weights=weights)
    trainer.accelerator.wait_for_everyone()
    losses = trainer.losses
    tenth = max(1, len(losses) // 10)
    report = TrainReport(
        model=out,
        num_steps=trainer.state.global_step,
        num_samples=len(lengths),
        num_cut=objective.num_cut,
        num_dropped=objective.num_dropped,
        num_tokens=trainer.num_tokens,
        num_loss_tokens=trainer.num_loss_tokens,
        padding_fraction=1 - trainer.num_tokens / max(trainer.num_positions, 1),
        first_loss=sum(losses[:tenth]) / tenth if losses else float("nan"),
        last_loss=sum(losses[-tenth:]) / tenth if losses else float("nan"),
        seconds=time.perf_counter() - start,
        train_seconds=train_seconds,
        precision="bf16" if bf16 else "fp32",
        world_size=trainer.accelerator.num_processes,
        stopped_by="max_seconds" if clock.stopped else "steps",
        resumed_from_step=checkpoints.step_of(resume) if resume else 0,
        metrics=trainer.mean_metrics(tenth),
    )
    if first:
        # First the note, then the checkpoints go: after an interruption in between, one of them is found.
        checkpoints.write_finished(out, digest, report)
        shutil.rmtree(folder, ignore_errors=True)
    return report


def _resumable(folder: Path, digest: str) -> Path | None:
    checkpoints.claim(folder, digest)
    return checkpoints.newest_complete(folder)


def _bf16_is_faster(model: Any, objective: Objective, batch_size: int) -> bool:
    """Time forward and backward passes of each kind on the longest samples."""
    import torch

    longest = sorted(range(len(objective.lengths)), key=lambda i: -objective.lengths[i])[:batch_size]
    ids = objective.collate([{"index": i} for i in longest])["input_ids"].to(model.device)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for bf16 in (False, True) * 4:
        begin = time.perf_counter()
        with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        seconds[bf16].append(time.perf_counter() - begin)
        model.zero_grad()
    # The first pass of each kind warms up; of the others the fastest counts, against disturbances.
    return min(seconds[True][1:]) < min(seconds[False][1:])


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Undo what training changes on a model that the caller continues using."""
    held = "forward" in model.__dict__
    mode = model.training
    try:
        yield
    finally:
        if not held:
            model.__dict__.pop("forward", None)
        model.train(mode)
