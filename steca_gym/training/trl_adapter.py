"""The only file that uses TRL: the training loop that offline trainers share, and the spelling of its arguments.

Whatever TRL, transformers' ``Trainer`` or PEFT may rename is in this file.
"""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from steca_gym.errors import CheckpointError, TrainingError
from steca_gym.files import write_json
from steca_gym.training import checkpoints
from steca_gym.training.base import OnLog
from steca_gym.training.heads import add_covered_head, has_plain_head, token_nll
from steca_gym.training.samples import LengthGroupedSampler
from steca_gym.training.settings import OptimizationSettings

_LOG = logging.getLogger(__name__)

_HISTORY = "history.json"
"""file in a checkpoint: loss and metrics of every step so far"""

NumItems = Callable[[dict[str, torch.Tensor]], torch.Tensor]
"""what the loss of a batch is divided by, once summed over the forward passes and processes of an optimizer step"""


class Loss(Protocol):
    """The loss of a batch, as a sum: the trainer divides it by the number of items of the optimizer step."""

    def __call__(
        self, inputs: dict[str, torch.Tensor], nll: torch.Tensor, covered: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute it.

        Args:
            inputs: the batch.
            nll: negative log-likelihood of the covered tokens, shape (num_covered,).
            covered: mask of shape (batch, length - 1) whose order of True entries is that of ``nll``.

        Returns:
            the summed loss, and summed metrics that are divided by the same number.
        """
        ...


class StepTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's training loop with a loss of our own over the covered tokens.

    The loss of an optimizer step is the sum over all its forward passes and processes, divided by the number of items
    in all of them. So the gradient does not depend on how the batch is split. (Dividing each forward pass by its own
    number makes the gradient too large by the number of passes.)
    """

    def __init__(self, *, sampler: LengthGroupedSampler, loss: Loss, num_items: NumItems, **kwargs: Any) -> None:
        """As SFTTrainer, with the order of the samples and the loss."""
        self._sampler = sampler
        self._loss = loss
        self._num_items = num_items
        super().__init__(**kwargs)
        # The loss is normalized by num_items already: the base class must not divide it again.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self.started = False
        """whether a forward pass was made: what a checkpoint holds was loaded"""
        self.num_positions = 0
        self.num_tokens = 0
        self.num_loss_tokens = 0
        # Plain numbers: a tensor kept for each step pins the heap around it (22 MiB more after 800 steps).
        self.losses: list[float] = []
        self.metrics: dict[str, list[float]] = {}
        self._rows_at_once = sys.maxsize
        self._step_loss: torch.Tensor | None = None
        self._step_metrics: dict[str, torch.Tensor] = {}
        trained: Any = self.model
        base = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
        self._plain_head = has_plain_head(base)
        if self._plain_head:
            add_covered_head(base)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        count = torch.stack([self._num_items(batch) for batch in batch_samples]).sum().to(device)
        if self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()  # pyright: ignore[reportAttributeAccessIssue]
        return count

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See the class."""
        nll, covered, _ = token_nll(model, inputs, plain_head=self._plain_head)
        total, metrics = self._loss(inputs, nll, covered)
        num_items = self._num_items(inputs) if num_items_in_batch is None else num_items_in_batch
        divisor = torch.as_tensor(num_items, device=nll.device).clamp(min=1)
        loss = total / divisor
        if num_items_in_batch is not None:
            # num_items counts all processes' items, and data-parallel training averages their gradients.
            loss = loss * self.accelerator.num_processes
        for name, value in metrics.items():
            value = value.detach() / divisor * self.accelerator.num_processes
            self._step_metrics[name] = self._step_metrics[name] + value if name in self._step_metrics else value
        self.num_positions += inputs["input_ids"].numel()
        self.num_tokens += int(inputs["attention_mask"].sum())
        self.num_loss_tokens += int(covered.sum())
        return (loss, {}) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass, in smaller parts where memory does not suffice.

        Raises:
            TrainingError: the loss is not a finite number, or memory does not suffice and the batch cannot be split.
        """
        self.started = True
        loss = self._within_memory(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} (expected a finite number); "
                "lower the learning rate, train in fp32, or check the samples' weights"
            )
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        if self.accelerator.sync_gradients:
            self.losses.append(self._over_processes(self._step_loss))
            self._step_loss = None
            for name, value in self._step_metrics.items():
                self.metrics.setdefault(name, []).append(self._over_processes(value))
            self._step_metrics = {}
        return loss

    def _within_memory(self, model: Any, inputs: dict[str, Any], num_items: Any) -> torch.Tensor:
        """Halve what is read at once until it fits. The loss is a sum over samples, so the gradient stays the same."""
        num_rows = len(inputs["input_ids"])
        # What other forward passes of the step, or other processes, have added to the gradients would be lost.
        alone = self.args.gradient_accumulation_steps == 1 and self.accelerator.num_processes == 1
        of_rows = "side" not in inputs and all(len(v) == num_rows for v in inputs.values())  # pairs stay together
        can_be_split = alone and num_items is not None and of_rows
        while True:
            size = min(self._rows_at_once, num_rows) if can_be_split else num_rows
            before = (self.num_positions, self.num_tokens, self.num_loss_tokens, dict(self._step_metrics))
            try:
                losses = [
                    super(StepTrainer, self).training_step(
                        model, {k: v[at : at + size] for k, v in inputs.items()}, num_items
                    )
                    for at in range(0, num_rows, size)
                ]
                return torch.stack(losses).sum()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1 or not can_be_split:
                    half = max(1, self.args.per_device_train_batch_size // 2)
                    length = inputs["input_ids"].shape[1]
                    raise TrainingError(
                        f"memory does not suffice for {size} sequences of {length} tokens at step "
                        f"{self.state.global_step + 1}; set per_device_batch_size={half} and raise "
                        "gradient_accumulation_steps instead (the gradient is the same), or lower max_length"
                    ) from error
                self._rows_at_once = (size + 1) // 2
                _LOG.warning(
                    "memory does not suffice for %d sequences at once; going on with %d (the gradient is the same)",
                    size,
                    self._rows_at_once,
                )
            self.num_positions, self.num_tokens, self.num_loss_tokens, self._step_metrics = before
            model.zero_grad(set_to_none=True)
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _over_processes(self, value: torch.Tensor) -> float:
        """The mean over the processes, which is the whole batch's value."""
        if self.accelerator.num_processes > 1:
            value = self.accelerator.reduce(value.detach().clone(), "mean")  # pyright: ignore[reportAssignmentType]
        return float(value)

    def mean_metrics(self, num_steps: int) -> dict[str, float]:
        """The loss's metrics, means over the last steps of this process."""
        return {name: float(torch.tensor(values[-num_steps:]).mean()) for name, values in self.metrics.items()}

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: a checkpoint is weights, configuration and tokenizer."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoints.check_finite(self.model)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(self.args.output_dir)  # pyright: ignore[reportArgumentType]
            saved = folder / f"checkpoint-{self.state.global_step}"
            names, rows = list(self.metrics), zip(*self.metrics.values(), strict=True)
            by_step = [dict(zip(names, row, strict=True)) for row in rows]
            held = {"losses": self.losses, "metrics": by_step, "world_size": self.accelerator.num_processes}
            write_json(saved / _HISTORY, held)
            checkpoints.write_manifest(saved)
            # Older ones go only now: at any moment there is a complete checkpoint.
            old = sorted(folder.glob("checkpoint-*"), key=checkpoints.step_of)[: -self._num_checkpoints_kept]
            for path in old:
                shutil.rmtree(path, ignore_errors=True)

    _num_checkpoints_kept = 1

    def resume_history(self, checkpoint: Path) -> None:
        """Take up the losses of the steps before a checkpoint, so that the report is that of an uninterrupted run.

        Raises:
            CheckpointError: it was written by another number of processes, which saw other batches.
        """
        history = json.loads((checkpoint / _HISTORY).read_text(encoding="utf-8"))
        here = self.accelerator.num_processes
        if history.get("world_size", here) != here:
            raise CheckpointError(
                f"{str(checkpoint)!r} was written by {history['world_size']} processes, and this training has {here}: "
                f"its steps would see other batches; start {history['world_size']} processes, or remove "
                f"{str(checkpoint.parent)!r} to begin again"
            )
        self.losses = history["losses"]
        self.metrics = {name: [m[name] for m in history["metrics"]] for name in (history["metrics"] or [{}])[0]}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left; torch says so of a CPU by a RuntimeError's text only."""
    texts = ("can't allocate memory", "not enough memory", "out of memory")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)
    )


class Clock(TrainerCallback):  # type: ignore[misc]
    """Stops at ``max_seconds`` and passes metrics on."""

    def __init__(self, max_seconds: float | None, on_log: OnLog | None) -> None:
        """``max_seconds``: wall time of the training loop, or None."""
        self.trainer: StepTrainer | None = None
        self._max_seconds = max_seconds
        self._on_log = on_log
        self._start = time.perf_counter()
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop where the time is up."""
        late = self._max_seconds is not None and time.perf_counter() - self._start >= self._max_seconds
        if late and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Pass on what the caller asked for."""
        if self._on_log is None or not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        metrics = {k: float(logs[k]) for k in ("loss", "learning_rate", "grad_norm") if k in logs}
        own = self.trainer.mean_metrics(args.logging_steps) if self.trainer is not None else {}
        self._on_log({"step": float(state.global_step), "max_steps": float(state.max_steps), **metrics, **own})


def _num_warmup_steps(settings: OptimizationSettings, num_samples: int) -> int:
    """Rounded down: transformers rounds up, which gives a training of one step a learning rate of 0."""
    num_steps = float(settings.max_steps or 0)
    if settings.num_epochs is not None:
        per_process = math.ceil(num_samples / int(os.environ.get("WORLD_SIZE", "1")))
        num_batches = math.ceil(per_process / settings.per_device_batch_size)
        num_steps = settings.num_epochs * math.ceil(num_batches / settings.gradient_accumulation_steps)
    return int(settings.warmup_ratio * num_steps)


def _peft_config(settings: OptimizationSettings) -> Any:
    if settings.lora_rank is None:
        return None
    from peft import LoraConfig

    modules = settings.lora_target_modules
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha if settings.lora_alpha is not None else 2 * settings.lora_rank,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.lora_dropout,
        target_modules=modules if isinstance(modules, str) else list(modules),
        task_type="CAUSAL_LM",
    )


def make_trainer(
    model: Any,
    tokenizer: Any,
    *,
    lengths: Sequence[int],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, torch.Tensor]],
    loss: Loss,
    num_items: NumItems,
    settings: OptimizationSettings,
    bf16: bool,
    folder: Path,
    on_log: OnLog | None,
) -> tuple[StepTrainer, Clock]:
    """Assemble the trainer; the caller runs ``trainer.train``.

    Args:
        model: trained in place.
        tokenizer: saved with checkpoints.
        lengths: tokens of each sample; sample ``i`` reaches ``collate`` as ``{"index": i}``.
        collate: makes a batch, with ``input_ids``, ``attention_mask`` and ``labels``.
        loss: see ``Loss``.
        num_items: what it is divided by.
        settings: how to train.
        bf16: autocast to bfloat16.
        folder: for checkpoints.
        on_log: called every ``log_every_steps``, in the first process.

    Raises:
        TrainingError: a LoRA module name that the model does not have, or another number of processes than WORLD_SIZE.
    """
    clock = Clock(settings.max_seconds, on_log)
    config = SFTConfig(
        output_dir=str(folder),
        num_train_epochs=settings.num_epochs if settings.num_epochs is not None else 1,
        max_steps=settings.max_steps if settings.max_steps is not None else -1,
        per_device_train_batch_size=settings.per_device_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=_num_warmup_steps(settings, len(lengths)),
        adam_beta2=settings.adam_beta2,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=bf16,
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        activation_checkpointing=settings.gradient_checkpointing,
        logging_steps=settings.log_every_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if settings.save_every_steps else "no",
        save_steps=settings.save_every_steps or 500,
        save_total_limit=None,  # see StepTrainer._save_checkpoint
        report_to=[],
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        max_length=None,
        packing=False,
        ddp_find_unused_parameters=False,
    )
    try:
        trainer = StepTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_dict({"index": list(range(len(lengths)))}),
            data_collator=collate,
            processing_class=tokenizer,
            peft_config=_peft_config(settings),
            callbacks=[clock],
            loss=loss,
            num_items=num_items,
            sampler=LengthGroupedSampler(
                lengths,
                batch_size=settings.per_device_batch_size,
                seed=settings.seed,
                by_length=settings.group_by_length,
            ),
        )
    except ValueError as error:
        if settings.lora_rank is None or "target" not in str(error).lower():
            raise
        raise TrainingError(
            f"lora_target_modules={settings.lora_target_modules!r} fits no module of this model: "
            f"{' '.join(str(error).split())[:160]}; name linear layers such as q_proj, or use all-linear"
        ) from error
    trainer._num_checkpoints_kept = settings.num_checkpoints_kept
    clock.trainer = trainer
    from transformers import PrinterCallback, ProgressCallback

    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    expected, world_size = int(os.environ.get("WORLD_SIZE", "1")), trainer.accelerator.num_processes
    if world_size != expected:
        raise TrainingError(
            f"expected {expected} processes (WORLD_SIZE), got {world_size} in the trainer; start with "
            "`torchrun --nproc_per_node N`"
        )
    return trainer, clock


def merged(trainer: StepTrainer) -> Any:
    """The trained model as a plain one: adapters are merged into the weights."""
    trained: Any = trainer.model
    return trained.merge_and_unload() if hasattr(trained, "merge_and_unload") else trained


def gathered_weights(trainer: StepTrainer) -> dict[str, Any] | None:
    """The whole weights where they are sharded over processes (FSDP, ZeRO 3); None: each process holds them.

    Call it in every process.
    """
    if not is_sharded(trainer):
        return None
    weights: dict[str, Any] = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    return weights


def is_sharded(trainer: StepTrainer) -> bool:
    """Whether no process holds the whole model."""
    from accelerate.utils import DistributedType

    kind = trainer.accelerator.distributed_type
    return kind == DistributedType.FSDP or (kind == DistributedType.DEEPSPEED and _zero_stage(trainer) == 3)


def _zero_stage(trainer: StepTrainer) -> int:
    plugin = trainer.accelerator.state.deepspeed_plugin
    return 0 if plugin is None else int(plugin.zero_stage)


def from_first_process(trainer: StepTrainer, make: Callable[[], Any]) -> Any:
    """What ``make`` returns in the first process, in all processes: files are looked at and removed by one of them."""
    made = [make() if trainer.is_world_process_zero() else None]
    if trainer.accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(made)
    return made[0]
