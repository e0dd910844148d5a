"""What a training is asked for and what it reports.

Knows units, ranges and the reference's recipe. Knows no torch and no TRL.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from steca_gym.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["cosine", "linear", "constant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How to train. Exactly one of ``num_epochs`` and ``max_steps`` says for how long."""

    num_epochs: float | None = None
    """passes over the samples, > 0"""
    max_steps: int | None = None
    """optimizer steps, >= 1"""
    max_seconds: float | None = None
    """stop after the step that reaches this time; a guard: what it cuts depends on the machine"""
    per_device_batch_size: int = 16
    """samples per forward pass and process"""
    gradient_accumulation_steps: int = 1
    """forward passes per optimizer step; the gradient is that of the whole batch, whatever the split"""
    learning_rate: float = 2e-5
    schedule: Schedule = "cosine"
    """how the learning rate falls behind its warm-up: to 0 along a cosine or a line, or not at all"""
    warmup_ratio: float = 0.03
    """fraction of the optimizer steps in which the learning rate rises, in [0, 1)"""
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """the gradient's norm is clipped there; 0: never"""
    max_length: int = 4096
    """tokens of a sample; what is longer is cut at its end, and counted in the report"""
    loss_on: Literal["agent", "all"] = "agent"
    """"agent": trainable turns only, as STeCa has it; "all": every token, for a model made from scratch"""
    precision: Precision = "fp32"
    """"bf16" is autocast over float32 weights; "auto" times both on the longest samples, and so is not
    reproducible where they are close; a run of several trainings measures once"""
    group_by_length: bool = True
    """batches of samples of similar length: less padding"""
    lora_rank: int | None = None
    """train low-rank adapters of this rank (PEFT) and merge them at the end; None: all weights"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    save_every_steps: int | None = None
    """optimizer steps between checkpoints from which a killed training goes on; None: none"""
    log_every_steps: int = 10
    """optimizer steps between two calls of ``on_log``"""
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        if (self.num_epochs is None) == (self.max_steps is None):
            raise ConfigError(
                f"expected exactly one of num_epochs and max_steps, got num_epochs={self.num_epochs} and "
                f"max_steps={self.max_steps}; leave one of them at None"
            )
        positive = {
            "num_epochs": self.num_epochs,
            "max_seconds": self.max_seconds,
            "learning_rate": self.learning_rate,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be > 0, got {value}")
        counts = {
            "max_steps": self.max_steps,
            "per_device_batch_size": self.per_device_batch_size,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "lora_rank": self.lora_rank,
            "save_every_steps": self.save_every_steps,
            "log_every_steps": self.log_every_steps,
        }
        for name, count in counts.items():
            if count is not None and (count < 1 or int(count) != count):
                raise ConfigError(f"{name} must be a whole number >= 1, got {count}")
        if self.max_length < 2:
            raise ConfigError(f"max_length must be >= 2 tokens, got {self.max_length}")
        if not 0 <= self.warmup_ratio < 1:
            raise ConfigError(f"warmup_ratio must lie in [0, 1), got {self.warmup_ratio}")
        if not 0 <= self.adam_beta2 < 1:
            raise ConfigError(f"adam_beta2 must lie in [0, 1), got {self.adam_beta2}")
        for name, value in {"weight_decay": self.weight_decay, "max_grad_norm": self.max_grad_norm}.items():
            if value < 0:
                raise ConfigError(f"{name} must be >= 0, got {value}")
        for name, text, known in (
            ("schedule", self.schedule, ("cosine", "linear", "constant")),
            ("precision", self.precision, ("auto", "fp32", "bf16")),
            ("loss_on", self.loss_on, ("agent", "all")),
        ):
            if text not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, got {text!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training did."""

    model: Path
    """folder of the trained model and its tokenizer, as ``save_pretrained`` writes them"""
    num_steps: int
    """optimizer steps, those before a resumption included"""
    num_samples: int
    """samples trained on"""
    num_cut: int
    """samples that were longer than ``max_length`` and lost their end"""
    num_dropped: int
    """samples without a single token to train on (after the cut)"""
    num_tokens: int
    """tokens read by this call, padding excluded"""
    num_loss_tokens: int
    """of these, tokens that the loss covers"""
    padding_fraction: float
    """share of the computed positions that were padding, in [0, 1)"""
    first_loss: float
    """weighted negative log-likelihood per covered token, nats: mean of the first tenth of the steps"""
    last_loss: float
    """mean of the last tenth of the steps"""
    seconds: float
    """wall time of the whole call"""
    train_seconds: float
    """wall time of the training loop alone"""
    precision: Literal["fp32", "bf16"]
    world_size: int
    """processes that trained together"""
    stopped_by: Literal["steps", "max_seconds"] = "steps"
    resumed_from_step: int = 0
    """0: from the start"""

    @property
    def tokens_per_second(self) -> float:
        """Tokens read per second of the loop, in this process, padding excluded."""
        return self.num_tokens / max(self.train_seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for records and trackers."""
        plain = dataclasses.asdict(self)
        return {**plain, "model": str(self.model), "tokens_per_second": round(self.tokens_per_second, 1)}


def warm_up_settings(**changes: Any) -> TrainSettings:
    """The warm-up of the STeCa authors: 3 epochs, batch 16, 2e-5 cosine, warm-up 0.03, 4096 tokens."""
    reference: dict[str, Any] = {
        "num_epochs": None if changes.get("max_steps") else 3,
        "per_device_batch_size": 16,
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "max_length": 4096,
    }
    return TrainSettings(**{**reference, **changes})


def reinforced_settings(**changes: Any) -> TrainSettings:
    """The reinforced training of the STeCa authors: 1 epoch, batch 15, 3e-6."""
    reference: dict[str, Any] = {
        "num_epochs": None if changes.get("max_steps") else 1,
        "per_device_batch_size": 15,
        "learning_rate": 3e-6,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "max_length": 4096,
    }
    return TrainSettings(**{**reference, **changes})
