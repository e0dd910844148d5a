"""Training settings. They import no torch, so that a run can check all of them before its first stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from steca_gym.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]
Schedule = Literal["cosine", "linear", "constant"]
LossNormalization = Literal["tokens", "sequence_sum"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizationSettings:
    """What every offline trainer needs: length, batches, optimizer, precision, adapters and checkpoints.

    Set exactly one of ``num_epochs``, ``max_steps`` and ``max_tokens``.

    Raises:
        ConfigError: a value of the wrong type or out of range, or a combination that cannot work.
    """

    num_epochs: float | None = None
    """passes over the samples, > 0"""
    max_steps: int | None = None
    """optimizer steps, >= 1"""
    max_tokens: int | None = None
    """tokens that are read, prompts included, >= 1: as many optimizer steps as come nearest to it, by the mean
    length of the samples. Methods whose samples differ in length are compared at equal cost"""
    max_seconds: float | None = None
    """stop after the optimizer step that reaches this wall time. A safety limit: the result then depends on the
    speed of the machine"""
    per_device_batch_size: int = 16
    """samples per forward pass and process"""
    gradient_accumulation_steps: int = 1
    """forward passes per optimizer step; the gradient is that of the whole batch, however it is split"""
    learning_rate: float = 2e-5
    """peak learning rate, reached at the end of the warm-up"""
    schedule: Schedule = "cosine"
    """learning rate after the warm-up: falls to 0 along a cosine or a line, or stays constant"""
    warmup_ratio: float = 0.03
    """fraction of the optimizer steps in which the learning rate rises from 0, in [0, 1)"""
    adam_beta2: float = 0.999
    """decay of Adam's second moment, in [0, 1)"""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm; 0: no clipping"""
    max_length: int = 4096
    """tokens per sample; longer samples are cut, and the report counts them as ``num_cut``"""
    precision: Precision = "fp32"
    """"bf16": autocast over float32 weights. "auto": time both on the longest samples and take the faster one; two
    runs may then differ, so name a precision where results have to be reproducible"""
    pad_to_multiple_of: int | None = None
    """batches are padded to a multiple of this many tokens; 1: to their longest sample. None: 128 in bfloat16 on a CPU,
    which keeps memory for every new batch shape, else 1"""
    group_by_length: bool = True
    """batch samples of similar length: less padding"""
    lora_rank: int | None = None
    """train low-rank adapters (PEFT) of this rank and merge them at the end; None: train all weights"""
    lora_alpha: float | None = None
    """scale of the adapters, > 0; None: twice the rank"""
    lora_dropout: float = 0.0
    """dropout in front of the adapters, in [0, 1)"""
    lora_target_modules: str | tuple[str, ...] = "all-linear"
    """names of the modules that get adapters, or "all-linear": every linear layer but the output embedding"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    save_every_steps: int | None = None
    """optimizer steps between checkpoints, from which an interrupted training resumes; None: no checkpoints"""
    num_checkpoints_kept: int = 1
    """checkpoints on disk, >= 1. With 2, a damaged one costs ``save_every_steps`` steps instead of all of them"""
    log_every_steps: int = 10
    """optimizer steps between two calls of ``on_log``"""
    seed: int = 0
    """seed of the sample order and of dropout"""

    def __post_init__(self) -> None:
        """Validate."""
        ends = {name: getattr(self, name) for name in ("num_epochs", "max_steps", "max_tokens")}
        if sum(value is not None for value in ends.values()) != 1:
            given = ", ".join(f"{name}={value}" for name, value in ends.items())
            raise ConfigError(
                f"expected exactly one of num_epochs, max_steps and max_tokens, got {given}; leave the others at None"
            )
        for name in ("num_epochs", "max_seconds", "lora_alpha"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        check_number("learning_rate", self.learning_rate, above=0)
        for name in ("warmup_ratio", "adam_beta2", "lora_dropout"):
            check_number(name, getattr(self, name), minimum=0, below=1)
        for name in ("weight_decay", "max_grad_norm"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("per_device_batch_size", "gradient_accumulation_steps", "num_checkpoints_kept", "log_every_steps"):
            check_count(name, getattr(self, name))
        for name in ("max_steps", "max_tokens", "pad_to_multiple_of", "lora_rank", "save_every_steps"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        check_count("max_length", self.max_length, minimum=2)
        check_count("seed", self.seed, minimum=0)
        for name in ("group_by_length", "gradient_checkpointing"):
            check_bool(name, getattr(self, name))
        check_choice("schedule", self.schedule, ("cosine", "linear", "constant"))
        check_choice("precision", self.precision, ("auto", "fp32", "bf16"))
        self._check_lora()

    def _check_lora(self) -> None:
        modules = self.lora_target_modules
        if not isinstance(modules, str):
            # A configuration file gives a list.
            names = tuple(modules) if isinstance(modules, Sequence) else ()
            if not names or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(
                    f'lora_target_modules must be "all-linear" or a list of module names, got {modules!r}'
                )
            object.__setattr__(self, "lora_target_modules", names)
        if self.lora_rank is None and (
            self.lora_alpha is not None or self.lora_dropout > 0 or self.lora_target_modules != "all-linear"
        ):
            raise ConfigError(
                "lora_alpha, lora_dropout and lora_target_modules have no effect without lora_rank; set lora_rank"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings(OptimizationSettings):
    """Settings of ``WeightedSFT``. Set exactly one of ``num_epochs``, ``max_steps`` and ``max_tokens``."""

    loss_on: Literal["agent", "all"] = "agent"
    """"agent": trainable turns only (STeCa); "all": every token, for a model that is trained from scratch"""
    loss_normalization: LossNormalization = "tokens"
    """what the weighted log-likelihood of an optimizer step is divided by. "tokens": its trained tokens.
    "sequence_sum": its samples, so that a sample counts by its number of tokens times its weight"""

    def __post_init__(self) -> None:
        """Validate."""
        OptimizationSettings.__post_init__(self)
        check_choice("loss_on", self.loss_on, ("agent", "all"))
        check_choice("loss_normalization", self.loss_normalization, ("tokens", "sequence_sum"))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceSettings(OptimizationSettings):
    """Settings of ``Preference`` (DPO, arXiv 2305.18290). Set one of ``num_epochs``, ``max_steps``, ``max_tokens``.

    A batch of ``per_device_batch_size`` pairs runs twice as many sequences.
    """

    learning_rate: float = 1e-6
    """peak learning rate, reached at the end of the warm-up"""
    beta: float = 0.1
    """strength of the pull to the reference model, > 0; scales the log-ratios in the loss"""
    sft_weight: float = 0.0
    """weight of an added term, the mean negative log-likelihood per token of the chosen side, >= 0"""
    label_smoothing: float = 0.0
    """assumed share of pairs whose sides are swapped, in [0, 0.5) (conservative DPO)"""

    def __post_init__(self) -> None:
        """Validate."""
        OptimizationSettings.__post_init__(self)
        check_number("beta", self.beta, above=0)
        check_number("sft_weight", self.sft_weight, minimum=0)
        check_number("label_smoothing", self.label_smoothing, minimum=0, below=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientSettings:
    """Settings of ``PolicyGradient``.

    Raises:
        ConfigError: a value of the wrong type or out of range, or a combination that cannot work.
    """

    learning_rate: float = 1e-6
    """learning rate after the warm-up; it stays constant"""
    warmup_steps: int = 0
    """optimizer steps in which the learning rate rises from 0"""
    adam_beta2: float = 0.999
    """decay of Adam's second moment, in [0, 1)"""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """gradients are clipped to this norm; 0: no clipping"""
    per_device_batch_size: int = 8
    """episodes per forward pass; a step's gradient does not depend on it"""
    num_minibatches: int = 1
    """optimizer steps per pass over the episodes of a ``step``, each on a part of them"""
    num_passes: int = 1
    """passes over the episodes of a ``step``. After the first optimizer step the data is off-policy: use
    ``clip_range``"""
    clip_range: float | None = None
    """PPO's clipping: the probability ratio counts within [1 - clip_range, 1 + clip_range_high]; None: no clipping"""
    clip_range_high: float | None = None
    """upper half of the range; None: as ``clip_range``"""
    kl_coef: float = 0.0
    """weight of the KL divergence to the reference model (k3 estimator per token), >= 0. Above 0, a copy of the initial
    weights is kept in memory"""
    entropy_coef: float = 0.0
    """weight of an entropy bonus per token, >= 0"""
    loss_normalization: LossNormalization = "tokens"
    """what the loss of an optimizer step is divided by. "tokens": its trained tokens. "sequence_sum": its episodes"""
    temperature: float = 1.0
    """temperature at which the episodes are sampled, > 0; logits are divided by it"""
    max_length: int = 4096
    """tokens per episode; longer episodes are cut, and the metrics count them as ``num_cut``"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """"bf16": autocast over the model's weights"""
    pad_to_multiple_of: int | None = None
    """as in ``OptimizationSettings``"""
    gradient_checkpointing: bool = False
    """recompute activations in the backward pass: less memory, more time"""
    seed: int = 0
    """seed of the order of the episodes in minibatches"""

    def __post_init__(self) -> None:
        """Validate."""
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("temperature", self.temperature, above=0)
        check_number("adam_beta2", self.adam_beta2, minimum=0, below=1)
        for name in ("weight_decay", "max_grad_norm", "kl_coef", "entropy_coef"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("clip_range", "clip_range_high"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        if self.clip_range is not None and self.clip_range >= 1:
            raise ConfigError(f"clip_range must be < 1, got {self.clip_range}")
        if self.clip_range is None and self.clip_range_high is not None:
            raise ConfigError("clip_range_high has no effect without clip_range; set clip_range")
        for name in ("per_device_batch_size", "num_minibatches", "num_passes"):
            check_count(name, getattr(self, name))
        check_count("warmup_steps", self.warmup_steps, minimum=0)
        check_count("seed", self.seed, minimum=0)
        check_count("max_length", self.max_length, minimum=2)
        if self.pad_to_multiple_of is not None:
            check_count("pad_to_multiple_of", self.pad_to_multiple_of)
        check_bool("gradient_checkpointing", self.gradient_checkpointing)
        check_choice("precision", self.precision, ("fp32", "bf16"))
        check_choice("loss_normalization", self.loss_normalization, ("tokens", "sequence_sum"))


def padding_multiple(settings: OptimizationSettings | PolicyGradientSettings, *, bf16: bool, on_cpu: bool) -> int:
    """The number of tokens that batches are padded to a multiple of."""
    if settings.pad_to_multiple_of is not None:
        return settings.pad_to_multiple_of
    return 128 if bf16 and on_cpu else 1


_SettingsT = TypeVar("_SettingsT", bound=OptimizationSettings)


def in_steps(settings: _SettingsT, lengths: Sequence[int], num_processes: int = 1) -> _SettingsT:
    """The settings with ``max_tokens`` as the number of optimizer steps that comes nearest to it, at least one.

    Args:
        settings: of a training.
        lengths: tokens of each sample, cut as they are trained.
        num_processes: that share each optimizer step.
    """
    if settings.max_tokens is None:
        return settings
    per_step = settings.per_device_batch_size * settings.gradient_accumulation_steps * num_processes
    steps_per_epoch = math.ceil(len(lengths) / per_step)
    steps = max(1, round(settings.max_tokens / max(1, sum(lengths)) * steps_per_epoch))
    return dataclasses.replace(settings, max_tokens=None, max_steps=steps)


def warm_up_settings(**changes: Any) -> TrainSettings:
    """SFT on demonstrations as the STeCa authors do it: 3 epochs, batch 16, 2e-5 cosine, warm-up 0.03, 4096 tokens."""
    reference: dict[str, Any] = {
        "num_epochs": None if changes.get("max_steps") or changes.get("max_tokens") else 3,
        "per_device_batch_size": 16,
        "learning_rate": 2e-5,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "max_length": 4096,
    }
    return TrainSettings(**{**reference, **changes})


def calibrated_settings(**changes: Any) -> TrainSettings:
    """Reward-weighted training on calibrated trajectories as the STeCa authors do it: 1 epoch, batch 15, 3e-6."""
    reference: dict[str, Any] = {
        "num_epochs": None if changes.get("max_steps") or changes.get("max_tokens") else 1,
        "per_device_batch_size": 15,
        "learning_rate": 3e-6,
        "schedule": "cosine",
        "warmup_ratio": 0.03,
        "max_length": 4096,
    }
    return TrainSettings(**{**reference, **changes})


def check_number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> None:
    """Raise ConfigError unless ``value`` is a finite number in the range (``above`` and ``below`` are exclusive)."""
    limits = [f">= {minimum}"] if minimum is not None else []
    limits += [f"> {above}"] if above is not None else []
    limits += [f"< {below}"] if below is not None else []
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if (
        not number
        or (minimum is not None and value < minimum)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    ):
        raise ConfigError(f"{name} must be a number {' and '.join(limits)}, got {value!r}")


def check_count(name: str, value: Any, *, minimum: int = 1) -> None:
    """Raise ConfigError unless ``value`` is a whole number of at least ``minimum``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(f"{name} must be a whole number >= {minimum}, got {value!r}")


def check_bool(name: str, value: Any) -> None:
    """Raise ConfigError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")


def check_choice(name: str, value: Any, known: Sequence[str]) -> None:
    """Raise ConfigError unless ``value`` is one of the known ones."""
    if value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
