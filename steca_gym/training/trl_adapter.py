"""The only file that knows TRL: a weighted SFT trainer, and how its arguments are spelled.

Everything here that TRL or transformers may rename lies in this file. Knows tensors and batches; knows no
trajectories, no chat and no run.
"""

from __future__ import annotations

import math
import os
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AttentionInterface, AttentionMaskInterface, TrainerCallback
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from steca_gym.errors import TrainingError
from steca_gym.training.samples import IGNORED, Collator, EncodedSample, LengthGroupedSampler
from steca_gym.training.settings import TrainSettings

# Architectures whose logits are the output embedding of the last hidden state, unscaled and uncapped. For
# these only the positions that the loss covers are projected; others compute their own logits everywhere.
_PLAIN_HEADS = frozenset({"llama", "mistral", "qwen2", "qwen3"})

_SMALL_ATTENTION = "sdpa_small_in_float32"
_SMALL = 16384
"""length times width of a head up to which torch's attention on a CPU trains faster in float32 than in bfloat16: its
backward pass in bfloat16 costs 12 ms where float32 takes 4 (8 rows, 8 heads of 32, 200 tokens), and as much at twice
the size
"""


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
    if query.shape[-2] * query.shape[-1] > _SMALL:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)


AttentionInterface.register(_SMALL_ATTENTION, _attend)
AttentionMaskInterface.register(_SMALL_ATTENTION, sdpa_mask)


@contextmanager
def small_attention_in_float32(model: Any) -> Iterator[None]:
    """On a CPU, let autocast leave short attention alone, where the model uses torch's and lets it be chosen."""
    config = getattr(model, "config", None)
    if model.device.type != "cpu" or getattr(config, "_attn_implementation", None) != "sdpa":
        yield
        return
    model.set_attn_implementation(_SMALL_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation("sdpa")


class WeightedSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """Supervised fine-tuning with one weight per sample.

    The loss of an optimizer step is ``sum_i w_i * sum_t nll_it / num_items``, ``num_items`` being the number
    of covered tokens in all its forward passes and processes, so that the gradient does not depend on how the
    batch is split (dividing each forward pass by its own tokens makes it too large by their number).
    """

    def __init__(self, *, sampler: LengthGroupedSampler, **kwargs: Any) -> None:
        """As SFTTrainer, with the order of the samples."""
        self._sampler = sampler
        super().__init__(**kwargs)
        # The loss below is normalised by num_items already: the base class must not divide it again.
        self.loss_is_scaled_for_ga = True
        self.model_accepts_loss_kwargs = True
        self.num_positions = 0
        self.num_tokens = 0
        self.num_loss_tokens = 0
        self.losses: list[torch.Tensor] = []
        self._step_loss: torch.Tensor | None = None
        trained: Any = self.model
        base = trained.get_base_model() if hasattr(trained, "get_base_model") else trained
        self._projects_covered_only = base.config.model_type in _PLAIN_HEADS
        if self._projects_covered_only:
            _add_covered_logits(base)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self._sampler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Weighted negative log-likelihood; see the class."""
        labels = inputs["labels"][:, 1:]
        covered = labels != IGNORED
        weights = inputs["weights"].to(labels.device)[:, None].expand_as(labels)[covered]
        # Right padding under causal attention needs no mask: no real position looks at what comes behind it.
        # Without a mask attention takes its fastest kernel.
        if self._projects_covered_only:
            logits = model(input_ids=inputs["input_ids"], covered=covered)
        else:
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            logits = outputs.logits[:, :-1][covered]
        nll = torch.nn.functional.cross_entropy(logits.float(), labels[covered], reduction="none")
        num_items = covered.sum() if num_items_in_batch is None else num_items_in_batch
        loss = (nll * weights).sum() / torch.as_tensor(num_items, device=nll.device).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # num_items counts all processes' tokens, and data-parallel training averages their gradients.
            loss = loss * self.accelerator.num_processes
        self.num_positions += inputs["input_ids"].numel()
        self.num_tokens += int(inputs["attention_mask"].sum())
        self.num_loss_tokens += int(covered.sum())
        return (loss, {"logits": logits}) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass; raises TrainingError when the loss is not a finite number."""
        loss: torch.Tensor = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} (expected a finite number); "
                "lower the learning rate, train in fp32, or check the samples' weights"
            )
        self._step_loss = loss if self._step_loss is None else self._step_loss + loss
        if self.accelerator.sync_gradients:
            self.losses.append(self._step_loss)
            self._step_loss = None
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: a checkpoint is weights, configuration and tokenizer."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        check_finite(self.model)
        super()._save_checkpoint(model, trial)


def _add_covered_logits(model: Any) -> None:
    """Let ``model(input_ids=..., covered=mask)`` return the logits of the covered positions only.

    It goes through ``forward``, so that wrappers for several processes and for autocast see the call.
    """
    original = model.forward

    def forward(self: Any, *args: Any, covered: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if covered is None:
            return original(*args, **kwargs)
        hidden = self.base_model(*args, use_cache=False, **kwargs).last_hidden_state
        return self.get_output_embeddings()(hidden[:, :-1][covered])

    model.forward = types.MethodType(forward, model)


def check_finite(model: Any) -> None:
    """Raise TrainingError where a weight is not a finite number."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not torch.isfinite(parameter).all():
            raise TrainingError(
                f"weights of {name!r} are not finite numbers and were not saved; "
                "lower the learning rate or train in fp32"
            )


class _Clock(TrainerCallback):  # type: ignore[misc]
    """Stops at ``max_seconds`` and hands metrics on."""

    def __init__(self, max_seconds: float | None, on_log: Callable[[dict[str, float]], None] | None) -> None:
        self._max_seconds = max_seconds
        self._on_log = on_log
        self._start = time.perf_counter()
        self.stopped = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        late = self._max_seconds is not None and time.perf_counter() - self._start >= self._max_seconds
        if late and state.global_step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._on_log is None or not state.is_world_process_zero or "loss" not in (logs or {}):
            return
        metrics = {k: float(logs[k]) for k in ("loss", "learning_rate", "grad_norm") if k in logs}
        self._on_log({"step": float(state.global_step), "max_steps": float(state.max_steps), **metrics})


def _num_warmup_steps(settings: TrainSettings, num_samples: int) -> int:
    """Rounded down: transformers' own rounding up gives a training of one step a learning rate of 0."""
    num_steps = float(settings.max_steps or 0)
    if settings.num_epochs is not None:
        per_process = math.ceil(num_samples / int(os.environ.get("WORLD_SIZE", "1")))
        num_batches = math.ceil(per_process / settings.per_device_batch_size)
        num_steps = settings.num_epochs * math.ceil(num_batches / settings.gradient_accumulation_steps)
    return int(settings.warmup_ratio * num_steps)


def make_trainer(
    model: Any,
    tokenizer: Any,
    samples: Sequence[EncodedSample],
    *,
    settings: TrainSettings,
    bf16: bool,
    checkpoints: Path,
    on_log: Callable[[dict[str, float]], None] | None,
) -> tuple[WeightedSFTTrainer, _Clock]:
    """Put TRL's trainer together; the caller runs ``trainer.train``."""
    clock = _Clock(settings.max_seconds, on_log)
    config = SFTConfig(
        output_dir=str(checkpoints),
        num_train_epochs=settings.num_epochs if settings.num_epochs is not None else 1,
        max_steps=settings.max_steps if settings.max_steps is not None else -1,
        per_device_train_batch_size=settings.per_device_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule if settings.schedule != "constant" else "constant_with_warmup",
        warmup_steps=_num_warmup_steps(settings, len(samples)),
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
        save_total_limit=1,
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
    peft_config = None
    if settings.lora_rank is not None:
        from peft import LoraConfig

        peft_config = LoraConfig(
            r=settings.lora_rank,
            lora_alpha=2 * settings.lora_rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    trainer = WeightedSFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_dict({"index": list(range(len(samples)))}),
        data_collator=Collator(samples, tokenizer.pad_token_id),
        processing_class=tokenizer,
        peft_config=peft_config,
        callbacks=[clock],
        sampler=LengthGroupedSampler(
            [len(s.input_ids) for s in samples],
            batch_size=settings.per_device_batch_size,
            seed=settings.seed,
            by_length=settings.group_by_length,
        ),
    )
    from transformers import PrinterCallback, ProgressCallback

    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer, clock
