"""The presets: one source, and ``paper`` and ``repo`` against the specification, sentence by sentence.

Each row names the sentence that a setting is read from. Where the specification lies beside the project
(``../shared/STECA.md``) the sentence itself is looked up there.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from steca_gym.calibration import (
    CalibrationSettings,
    Preset,
    StepRewardSettings,
    WeightSettings,
    load_preset,
    preset_from_config,
    preset_names,
)
from steca_gym.calibration.weights import explored_threshold
from steca_gym.cli.composing import compose
from steca_gym.errors import ConfigError, UnknownNameError

SPECIFICATION = Path(__file__).resolve().parents[2] / "shared" / "STECA.md"

RULE = "`r_s(s_t, â_t) - r_s(s_{t-1}, a_{t-1}) < delta`, delta = 0"
FIRST = "only the first deviation of an exploration counts (the paper)"
EVERY = "every deviated step of a trajectory is used, not the first only"
CODE = "The authors' code says `<=`"
FAILS = "asks also that the agent fails the task"
COSINE = "is not the expert's action in other words (cosine of the action embeddings < 0.95)"
SKIPS = "and skips the first two steps"
SAMPLES = "(N = 5, temperature 1, at most 40 steps)"
BOTH = "It is estimated for expert actions and for explored actions."
WEIGHTS = "The code: ALFWorld w = 0.01, d_max = 0.013"
RESTS = "`D_s` expert sub-trajectories `e_{t:n}`"
ROUND = "One round only."
EPISODES = "D_e is whole episodes that the agent won from the start"
DEMONSTRATIONS = "whole demonstrations of tasks that it fails from the start are added"
CONSTANT = "learning rate constant after a warm-up of 0.1"
SUMMED = "the loss is summed over a sequence"
LEAVES_OUT = "the distance of D_c leaves the wrong action out"
BERT = "both thresholds (0.95, 0.013) belong to BERT's [CLS] cosines"
VIRTUALHOME = "VirtualHome w = 1, d_max = 1e-22"

ROWS: list[tuple[str, str, Any, str]] = [
    ("paper", "preset.calibration.delta", 0.0, RULE),
    ("paper", "preset.calibration.tie_rule", "kept", RULE),
    ("paper", "preset.calibration.detector", "compare", FIRST),
    ("paper", "preset.calibration.skip_first_steps", 1, RULE),  # there is no a_{t-1} before the first step
    ("paper", "preset.calibration.require_failure", False, RULE),
    ("paper", "preset.calibration.detect_fatal", False, RULE),
    ("paper", "preset.calibration.value_every_step", True, BOTH),
    ("repo", "preset.calibration.delta", 0.0, CODE),
    ("repo", "preset.calibration.tie_rule", "deviated", CODE),
    ("repo", "preset.calibration.detector", "every", EVERY),
    ("repo", "preset.calibration.detect_fatal", False, CODE),
    ("repo", "preset.calibration.require_failure", True, FAILS),
    ("repo", "preset.calibration.same_action", "encoder", COSINE),
    ("repo", "preset.calibration.same_action_cosine", 0.95, COSINE),
    ("repo", "preset.calibration.skip_first_steps", 2, SKIPS),
    ("repo", "preset.calibration.value_every_step", True, BOTH),
    ("repo", "preset.calibration.explored", "episodes", EPISODES),
    ("repo", "preset.calibration.failed_demonstrations", True, DEMONSTRATIONS),
    ("repo", "preset.training.schedule", "constant", CONSTANT),
    ("repo", "preset.training.warmup_ratio", 0.1, CONSTANT),
    ("repo", "preset.training.loss_normalization", "sequence_sum", SUMMED),
    ("repo", "preset.weights.wrong_action_in_distance", False, LEAVES_OUT),
    ("repo_virtualhome", "preset.weights.weight", 1.0, VIRTUALHOME),
    ("repo_virtualhome", "preset.weights.max_distance", 1e-22, VIRTUALHOME),
    ("repo_virtualhome", "preset.calibration.detector", "every", EVERY),
    *(
        (name, key, value, sentence)
        for name in ("paper", "repo")
        for key, value, sentence in (
            ("preset.step_rewards.estimator", "fixed", SAMPLES),
            ("preset.step_rewards.num_samples", 5, SAMPLES),
            ("preset.step_rewards.temperature", 1.0, SAMPLES),
            ("preset.step_rewards.max_steps", 40, SAMPLES),
            ("preset.step_rewards.max_length_ratio", None, SAMPLES),
            ("preset.step_rewards.cut", "lost", SAMPLES),
            ("preset.step_rewards.skip_decided", False, SAMPLES),
            ("preset.step_rewards.reuse", "none", SAMPLES),
            ("preset.weights.weight", 0.01, WEIGHTS),
            ("preset.weights.max_distance", 0.013, WEIGHTS),
            ("preset.encoder", "bert_cls", BERT),
            ("preset.weights.max_distance_encoder", "bert_cls", BERT),
            ("preset.num_replayed", 0, RESTS),
            ("method.num_replayed", 0, RESTS),
            ("method.num_rounds", 1, ROUND),
        )
    ),
]
TRAINING = [
    ("agent.warm_up.num_epochs", 3, "3 epochs, batch 16, lr 2e-5, cosine, warm-up 0.03"),
    ("agent.warm_up.per_device_batch_size", 16, "3 epochs, batch 16, lr 2e-5, cosine, warm-up 0.03"),
    ("agent.warm_up.learning_rate", 2e-5, "3 epochs, batch 16, lr 2e-5, cosine, warm-up 0.03"),
    ("agent.warm_up.warmup_ratio", 0.03, "3 epochs, batch 16, lr 2e-5, cosine, warm-up 0.03"),
    ("agent.warm_up.max_length", 4096, "4096 tokens"),
    ("agent.train.num_epochs", 1, "1 epoch, lr 3e-6, batch 15"),
    ("agent.train.learning_rate", 3e-6, "1 epoch, lr 3e-6, batch 15"),
    ("agent.train.per_device_batch_size", 15, "1 epoch, lr 3e-6, batch 15"),
]


def _blank(text: str) -> str:
    return re.sub(r"\s+", " ", text)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return {name: compose([f"preset={name}"]) for name in preset_names()}


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "key", "value", "sentence"), ROWS)
def test_a_preset_is_what_the_source_says(
    composed: dict[str, Any], preset: str, key: str, value: Any, sentence: str
) -> None:
    assert OmegaConf.select(composed[preset], key) == value, sentence


@pytest.mark.parametrize(("key", "value", "sentence"), TRAINING)
def test_models_of_others_are_trained_as_the_source_says(key: str, value: Any, sentence: str) -> None:
    assert OmegaConf.select(compose(["agent=transformers", "agent.model=x"]), key) == value, sentence


def test_the_sentences_stand_in_the_specification() -> None:
    if not SPECIFICATION.exists():
        pytest.skip(f"{SPECIFICATION} is not here: the quoted sentences are NOT compared with their source")
    text = _blank(SPECIFICATION.read_text(encoding="utf-8"))
    missing = {s for s in [*(r[3] for r in ROWS), *(r[2] for r in TRAINING)] if _blank(s) not in text}
    assert not missing


def test_the_defaults_of_the_dataclasses_are_those_of_the_file() -> None:
    assert load_preset("default") == Preset()


@pytest.mark.parametrize("name", preset_names())
def test_the_library_and_the_command_line_read_the_same(composed: dict[str, Any], name: str) -> None:
    node = OmegaConf.to_container(composed[name].preset, resolve=True)
    assert isinstance(node, dict)
    assert load_preset(name) == preset_from_config(node)
    assert load_preset(name).name == name


def test_the_default_states_every_setting() -> None:
    node = OmegaConf.to_container(compose([]).preset)
    assert isinstance(node, dict)
    from_elsewhere = {"calibration": {"max_new_tokens", "round"}}
    for group, kind in (
        ("calibration", CalibrationSettings),
        ("step_rewards", StepRewardSettings),
        ("weights", WeightSettings),
    ):
        names = {f.name for f in dataclasses.fields(kind)} - from_elsewhere.get(group, set())  # type: ignore[arg-type]
        assert set(node[group]) == names


def test_other_presets_state_only_what_differs() -> None:
    import yaml

    from steca_gym import conf

    folder = Path(conf.__file__).parent / "preset"
    default = yaml.safe_load((folder / "default.yaml").read_text())
    for name in ("paper", "repo", "thrifty", "smoke"):
        own = yaml.safe_load((folder / f"{name}.yaml").read_text())["preset"]
        same = [
            f"{group}.{key}"
            for group in ("calibration", "step_rewards", "weights")
            for key, value in own.get(group, {}).items()
            if default[group][key] == value
        ]
        assert same == [], name


def test_a_preset_is_read_with_changes_and_checked() -> None:
    assert load_preset("paper", max_new_tokens=7).calibration.max_new_tokens == 7
    with pytest.raises(UnknownNameError, match="did you mean 'paper'"):
        load_preset("papr")
    with pytest.raises(UnknownNameError, match="did you mean 'preset.calibration.tie_rule'"):
        preset_from_config({"calibration": {"tie_rul": "kept"}})
    with pytest.raises(UnknownNameError, match="is now detector"):
        preset_from_config({"calibration": {"first_deviation_only": True}})
    with pytest.raises(UnknownNameError, match="is now count_greedy_rollout"):
        preset_from_config({"step_rewards": {"count_own_way": True}})
    with pytest.raises(ConfigError, match="num_replayed must be >= 0"):
        preset_from_config({"num_replayed": -3})
    with pytest.raises(ConfigError, match="require_failure"):
        preset_from_config({"step_rewards": {"count_greedy_rollout": True}})


def test_a_preset_says_what_it_cannot_mean_with_another_encoder() -> None:
    assert load_preset("default").departures("hash") == ()
    assert load_preset("paper").departures("bert-cls") == load_preset("paper").departures("bert_cls") == ()
    (line,) = load_preset("paper").departures("hash")
    assert "0.013" in line and "quantile 0.5" in line
    cosine, threshold = load_preset("repo").departures("hash")
    assert "same_action_cosine=0.95" in cosine and "max_distance=0.013" in threshold


def test_a_threshold_for_another_encoder_becomes_a_quantile_and_says_what_it_dropped() -> None:
    weights, distances = load_preset("paper").weights, [0.005, 0.02, 0.03, 0.04, 0.05, 0.06]
    own = explored_threshold(distances, weights, "bert-cls")
    assert (own.threshold, own.num_kept, own.num_dropped, own.source) == (0.013, 1, 5, "max_distance")
    # With hashed words nearly everything lies above 0.013: one of 117 would pass.
    other = explored_threshold(distances, weights, "hash")
    assert (other.num_kept, other.num_dropped, other.source) == (3, 3, "quantile")
    assert "3 of 6" in other.line() and "3 dropped" in other.line() and "quantile" in other.line()
    assert explored_threshold(distances, load_preset("default").weights, "hash").num_dropped == 0
    free = dataclasses.replace(weights, max_distance=None, max_distance_encoder=None)
    assert (
        explored_threshold(distances, free, "hash").num_kept == 6
        and "no distance" in explored_threshold([], free).line()
    )
