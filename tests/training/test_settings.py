from __future__ import annotations

from typing import Any

import pytest

from steca_gym.errors import ConfigError
from steca_gym.training import TrainSettings, calibrated_settings, warm_up_settings
from steca_gym.training.settings import in_steps, padding_multiple


@pytest.mark.parametrize(
    "bad",
    [
        {},
        {"num_epochs": 1, "max_steps": 1},
        {"max_steps": 1, "max_tokens": 100},
        {"max_tokens": 0},
        {"max_steps": 0},
        {"num_epochs": -1},
        {"max_steps": 1, "per_device_batch_size": 0},
        {"max_steps": 1, "gradient_accumulation_steps": 0},
        {"max_steps": 1, "learning_rate": 0.0},
        {"max_steps": 1, "warmup_ratio": 1.0},
        {"max_steps": 1, "schedule": "step"},
        {"max_steps": 1, "precision": "fp8"},
        {"max_steps": 1, "max_length": 1},
        {"max_steps": 1, "max_seconds": 0},
        {"max_steps": 1, "weight_decay": -0.1},
        {"max_steps": 1, "adam_beta2": 1.0},
        {"max_steps": 1, "lora_rank": 0},
        {"max_steps": 1, "loss_on": "user"},
        {"max_steps": 1, "loss_normalization": "mean"},
        {"max_steps": 1, "learning_rate": float("nan")},
        {"max_steps": 1, "learning_rate": "1e-3"},
        {"max_steps": 1.5},
        {"max_steps": True},
        {"max_steps": 1, "seed": -1},
        {"max_steps": 1, "group_by_length": "no"},
        {"max_steps": 1, "lora_alpha": 8.0},
        {"max_steps": 1, "lora_rank": 2, "lora_dropout": 1.0},
        {"max_steps": 1, "lora_rank": 2, "lora_target_modules": []},
        {"max_steps": 1, "pad_to_multiple_of": 0},
        {"max_steps": 1, "num_checkpoints_kept": 0},
    ],
)
def test_bad_settings_are_refused_in_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainSettings(**bad)
    assert "\n" not in str(caught.value)


def test_the_papers_recipes() -> None:
    warm_up, calibrated = warm_up_settings(), calibrated_settings()
    assert (warm_up.num_epochs, warm_up.per_device_batch_size, warm_up.learning_rate) == (3, 16, 2e-5)
    assert (calibrated.num_epochs, calibrated.per_device_batch_size, calibrated.learning_rate) == (
        1,
        15,
        3e-6,
    )
    assert warm_up_settings(max_steps=5, seed=3).num_epochs is None


def test_a_list_of_modules_from_a_file_becomes_a_tuple() -> None:
    settings = TrainSettings(max_steps=1, lora_rank=2, lora_target_modules=["q_proj"])  # type: ignore[arg-type]
    assert settings.lora_target_modules == ("q_proj",)


@pytest.mark.parametrize(
    ("given", "bf16", "on_cpu", "expected"),
    [
        (None, True, True, 128),
        (None, True, False, 1),
        (None, False, True, 1),
        (1, True, True, 1),
        (64, False, True, 64),
    ],
)
def test_batches_are_padded_to_few_lengths_where_memory_needs_it(
    given: int | None, bf16: bool, on_cpu: bool, expected: int
) -> None:
    settings = TrainSettings(max_steps=1, pad_to_multiple_of=given)
    assert padding_multiple(settings, bf16=bf16, on_cpu=on_cpu) == expected


@pytest.mark.parametrize(
    ("max_tokens", "num_processes", "steps"),
    [
        (1000, 1, 10),  # an epoch of 10 samples reads 500 tokens in 5 steps
        (500, 1, 5),
        (1, 1, 1),
        (549, 1, 5),
        (551, 1, 6),
        (1000, 2, 6),  # four samples a step: 3 steps an epoch, the last of two samples
    ],
)
def test_tokens_become_the_nearest_number_of_steps(max_tokens: int, num_processes: int, steps: int) -> None:
    settings = TrainSettings(max_tokens=max_tokens, per_device_batch_size=2)
    found = in_steps(settings, [40, 60] * 5, num_processes)
    assert (found.max_steps, found.max_tokens) == (steps, None)
    assert in_steps(found, [1]) is found
