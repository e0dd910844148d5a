from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

from steca_gym.agent import Prompt
from steca_gym.errors import CheckpointError, TrainingError
from steca_gym.training import Preference, PreferenceSettings, TrainReport, TrainSettings, checkpoints, train
from steca_gym.trajectory import PreferencePair, Step, Trajectory, WeightedTrajectory
from tests.fakes import tiny_model, tiny_tokenizer

from .conftest import PROMPT

SETTINGS = TrainSettings(max_steps=4, per_device_batch_size=4, learning_rate=3e-3, save_every_steps=1, seed=5)

Fit = Callable[..., TrainReport]


class Killed(RuntimeError):
    """Stands for the end of the process."""


@pytest.fixture
def fit(base: Path, samples: list[WeightedTrajectory], tmp_path: Path) -> Fit:
    def call(name: str = "out", *, model: Any = None, kill_after: int = 0, **changes: Any) -> TrainReport:
        def on_log(metrics: dict[str, float]) -> None:
            if kill_after and metrics["step"] > kill_after:
                raise Killed

        settings = dataclasses.replace(SETTINGS, log_every_steps=1, **changes)
        return train(
            model or base, samples, prompt=PROMPT, settings=settings, output_dir=tmp_path / name, on_log=on_log
        )

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return loaded


def same(left: Path, right: Path) -> bool:
    a, b = weights(left), weights(right)
    return all(torch.equal(a[k], b[k]) for k in a)


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


@pytest.mark.slow
def test_a_killed_training_resumes_to_equal_weights_and_an_equal_report(fit: Fit, tmp_path: Path) -> None:
    whole = fit("whole")
    with pytest.raises(Killed):
        fit(kill_after=2)
    resumed = fit()
    assert resumed.resumed_from_step == 2
    assert same(whole.model, resumed.model)
    assert (resumed.first_loss, resumed.last_loss) == (whole.first_loss, whole.last_loss)
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.parametrize("damage", [halve, flip, Path.unlink])
@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "trainer_state.json"])
def test_a_damaged_checkpoint_is_passed_over(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None], name: str
) -> None:
    with pytest.raises(Killed):
        fit(kill_after=3, num_checkpoints_kept=2)
    damage(tmp_path / "out/checkpoints/checkpoint-3" / name)
    with caplog.at_level(logging.WARNING):
        report = fit(num_checkpoints_kept=2)
    assert report.resumed_from_step == 2 and report.num_steps == 4
    lines = [r.getMessage() for r in caplog.records if r.name == "steca_gym.training.checkpoints"]
    assert len(lines) == 1 and name in lines[0] and "\n" not in lines[0]


@pytest.mark.parametrize("name", ["rng_state.pth", "scheduler.pt", checkpoints.MANIFEST])
def test_without_another_checkpoint_it_starts_again(fit: Fit, tmp_path: Path, name: str) -> None:
    with pytest.raises(Killed):
        fit(kill_after=1)
    halve(tmp_path / "out/checkpoints/checkpoint-1" / name)
    report = fit()
    assert report.resumed_from_step == 0 and report.num_steps == 4


@pytest.mark.slow
def test_a_checkpoint_that_is_whole_but_cannot_be_loaded_is_passed_over(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        fit(kill_after=2)
    checkpoint = tmp_path / "out/checkpoints/checkpoint-2"
    (checkpoint / "optimizer.pt").write_bytes(b"another format")
    checkpoints.write_manifest(checkpoint)
    assert fit().resumed_from_step == 0
    assert same(fit("whole").model, tmp_path / "out")


def test_a_checkpoint_of_another_training_is_not_used(fit: Fit) -> None:
    with pytest.raises(Killed):
        fit(kill_after=2)
    assert fit(learning_rate=1e-3).resumed_from_step == 0


def test_settings_that_do_not_change_the_result_resume_all_the_same(fit: Fit) -> None:
    with pytest.raises(Killed):
        fit(kill_after=2)
    assert fit(save_every_steps=None, num_checkpoints_kept=3).resumed_from_step == 2


# -- models ------------------------------------------------------------------------------------------------------


def changed_config(base: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 9}, {"model_type": "gpt2"}, {"hidden_size": 64}])
def test_weights_that_do_not_cover_the_model_are_refused(base: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = changed_config(base, tmp_path / "changed", **changes)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_layers_that_would_be_dropped_are_refused(tmp_path: Path, base: Path) -> None:
    folder = tmp_path / "deep"
    tiny_model(num_layers=2).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    with pytest.raises(CheckpointError, match="fewer layers"):
        checkpoints.load_model(folder)


def test_halved_weights_are_refused_in_one_line(base: Path, tmp_path: Path) -> None:
    folder = changed_config(base, tmp_path / "halved")
    halve(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="cannot load a causal language model") as caught:
        checkpoints.load_model(folder)
    assert "\n" not in str(caught.value)


def test_a_generation_config_that_transformers_will_not_save(fit: Fit, base: Path, tmp_path: Path) -> None:
    folder = changed_config(base, tmp_path / "vicuna")
    note = {"do_sample": False, "temperature": 0.9, "top_p": 0.6, "eos_token_id": 1, "max_length": 512}
    (folder / "generation_config.json").write_text(json.dumps(note))
    report = fit(model=folder, max_steps=1)
    saved = GenerationConfig.from_pretrained(report.model)
    assert saved.do_sample in (None, False) and saved.temperature in (None, 1.0) and saved.eos_token_id == 1


@pytest.mark.parametrize("preference", [False, True])
def test_samples_beyond_a_table_of_positions_are_refused_in_one_line(preference: bool, tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=1, n_head=1))
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")

    def fit(observation: str, out: str) -> TrainReport:
        played = [
            Trajectory(task_id="t", first_observation=observation, steps=(Step(action=action, observation="ok"),))
            for action in ("go", "stay")
        ]
        if preference:
            prefix = dataclasses.replace(played[0], steps=())
            pair = PreferencePair(prefix=prefix, chosen=played[0], rejected=played[1])
            trainer = Preference(PreferenceSettings(max_steps=1, per_device_batch_size=1))
            return trainer.fit(tmp_path / "gpt2", [pair], tmp_path / out, prompt=Prompt())
        settings = TrainSettings(max_steps=1, per_device_batch_size=1)
        samples = [WeightedTrajectory(trajectory=t) for t in played]
        return train(tmp_path / "gpt2", samples, prompt=Prompt(), settings=settings, output_dir=tmp_path / out)

    with pytest.raises(TrainingError, match="learned positions for 64; set max_length=64"):
        fit("word " * 300, "long")
    assert fit("a", "short").num_steps == 1


def test_several_named_chat_templates_are_refused_before_training(fit: Fit, base: Path, tmp_path: Path) -> None:
    folder = changed_config(base, tmp_path / "templates")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "tools": template + " "}
    tokenizer.save_pretrained(folder)
    with pytest.raises(CheckpointError, match="expected one chat template, got 2 named ones"):
        fit(model=folder, max_steps=1)
    # With one chosen it trains, also twice into one folder.
    tokenizer.chat_template = template
    chosen = changed_config(base, tmp_path / "chosen")
    tokenizer.save_pretrained(chosen)
    for learning_rate in (1e-3, 2e-3):
        report = fit(model=chosen, learning_rate=learning_rate, max_steps=1)
    assert AutoTokenizer.from_pretrained(report.model).chat_template == template


# -- folders that are replaced as a whole ----------------------------------------------------------------------------


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for text in ("one", "two"):
        checkpoints.replace_folder(folder, lambda part, text=text: (part / "file").write_text(text))
    assert (checkpoints.complete_folder(folder) / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["saved"]


def test_a_failed_write_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    checkpoints.replace_folder(folder, lambda part: (part / "file").write_text("one"))

    def fail(part: Path) -> None:
        (part / "file").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoints.replace_folder(folder, fail)
    assert (checkpoints.complete_folder(folder) / "file").read_text() == "one"


def test_an_interruption_between_the_renames_leaves_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    checkpoints.replace_folder(folder, lambda part: (part / "file").write_text("one"))
    folder.rename(tmp_path / ".saved.old")
    assert (checkpoints.complete_folder(folder) / "file").read_text() == "one"


def test_nothing_complete_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        checkpoints.complete_folder(tmp_path / "none")
    assert "\n" not in str(caught.value)
