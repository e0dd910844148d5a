from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steca_gym.errors import CheckpointError, StecaError, StorageError, TrainingError
from steca_gym.training import TrainReport, TrainSettings, train, trl_adapter
from steca_gym.training.samples import IGNORED, encode_sample
from steca_gym.trajectory import WeightedTrajectory

from .conftest import PROMPT

SETTINGS = TrainSettings(max_steps=4, per_device_batch_size=4, learning_rate=3e-3, log_every_steps=1, seed=5)

Run = Callable[..., TrainReport]


@pytest.fixture
def run(base: Path, samples: list[WeightedTrajectory], tmp_path: Path) -> Run:
    def call(name: str = "out", data: Any = None, on_log: Any = None, model: Any = None, **changes: Any) -> Any:
        return train(
            base if model is None else model,
            samples if data is None else data,
            prompt=PROMPT,
            settings=dataclasses.replace(SETTINGS, **changes),
            output_dir=tmp_path / name,
            on_log=on_log,
        )

    return call


def weights(folder: Path) -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return loaded


def same(left: Path, right: Path, tolerance: float = 0.0) -> bool:
    a, b = weights(left), weights(right)
    return all(torch.allclose(a[k], b[k], rtol=0, atol=tolerance) for k in a)


def plain_loss(folder: Path, samples: list[WeightedTrajectory]) -> float:
    """The weighted loss over all samples, computed without trainer, batches or padding."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    total, count = 0.0, 0
    for sample in samples:
        encoded = encode_sample(tokenizer, sample, PROMPT)
        with torch.no_grad():
            logits = model(torch.tensor([encoded.input_ids])).logits[0, :-1]
        labels = torch.tensor(encoded.labels[1:])
        nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
        total += sample.weight * nll.item()
        count += int((labels != IGNORED).sum())
    return total / count


def test_the_loss_is_the_weighted_likelihood(run: Run, base: Path, samples: list[WeightedTrajectory]) -> None:
    report = run(max_steps=1, per_device_batch_size=len(samples))
    assert report.first_loss == pytest.approx(plain_loss(base, samples), rel=1e-5)
    assert plain_loss(report.model, samples) < report.first_loss


def test_architectures_with_their_own_logits_have_the_same_loss(
    run: Run, base: Path, samples: list[WeightedTrajectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    from steca_gym.training import heads

    short = run("short", max_steps=2)
    monkeypatch.setattr(heads, "PLAIN_HEADS", frozenset())
    assert same(short.model, run("long", max_steps=2).model, tolerance=1e-5)


@pytest.mark.parametrize("accumulation", [2, 4])
def test_the_gradient_does_not_depend_on_accumulation(run: Run, accumulation: int) -> None:
    # Plain gradient norms, unclipped: Adam's first step would hide a wrong scale.
    norms: dict[int, list[float]] = {1: [], accumulation: []}
    for k, seen in norms.items():
        run(
            f"accumulation-{k}",
            on_log=lambda m, seen=seen: seen.append(m["grad_norm"]),
            per_device_batch_size=8 // k,
            gradient_accumulation_steps=k,
            max_steps=1,
            group_by_length=False,
            max_grad_norm=1e9,
        )
    assert norms[accumulation] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_a_sum_over_sequences_is_divided_by_their_number(
    run: Run, base: Path, samples: list[WeightedTrajectory], accumulation: int
) -> None:
    report = run(
        max_steps=1,
        loss_normalization="sequence_sum",
        per_device_batch_size=len(samples) // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    tokenizer = AutoTokenizer.from_pretrained(base)
    count = sum(x != IGNORED for s in samples for x in encode_sample(tokenizer, s, PROMPT).labels)
    assert report.first_loss == pytest.approx(plain_loss(base, samples) * count / len(samples), rel=1e-5)


def test_large_projections_in_parts_give_the_same_gradient(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from steca_gym.training import heads

    whole = run("whole", max_steps=1)
    monkeypatch.setattr(heads, "_CHUNK_BYTES", 4 * 400 * 7)  # seven positions at a time
    assert same(whole.model, run("parts", max_steps=1).model, tolerance=1e-6)


@pytest.mark.slow
def test_weights_scale_the_loss_and_zero_trains_nothing(
    run: Run, base: Path, samples: list[WeightedTrajectory]
) -> None:
    double = [dataclasses.replace(s, weight=2 * s.weight) for s in samples]
    assert run("double", double, max_steps=1).first_loss == pytest.approx(2 * run(max_steps=1).first_loss, rel=1e-5)
    nothing = [dataclasses.replace(s, weight=0.0) for s in samples]
    assert same(run("nothing", nothing).model, base)


@pytest.mark.slow
def test_two_runs_give_equal_weights_and_another_seed_does_not(run: Run) -> None:
    first, second = run("first"), run("second")
    assert same(first.model, second.model)
    assert not same(first.model, run("third", seed=6).model)


def test_checkpoints_are_plain_folders(run: Run, base: Path) -> None:
    report = run()
    files = {p.name for p in report.model.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= files
    assert "checkpoints" not in files
    tokenizer = AutoTokenizer.from_pretrained(report.model)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert not same(report.model, base)


def test_the_report_counts(run: Run, samples: list[WeightedTrajectory], base: Path) -> None:
    logs: list[dict[str, float]] = []
    report = run(on_log=logs.append, num_epochs=1, max_steps=None)
    tokenizer = AutoTokenizer.from_pretrained(base)
    encoded = [encode_sample(tokenizer, s, PROMPT) for s in samples]
    assert report.num_steps == 4 and report.num_samples == 16 and report.num_dropped == report.num_cut == 0
    assert report.num_tokens == sum(len(e.input_ids) for e in encoded)
    assert report.num_loss_tokens == sum(x != IGNORED for e in encoded for x in e.labels)
    assert 0 <= report.padding_fraction < 0.2
    assert [m["step"] for m in logs] == [1, 2, 3, 4]
    assert logs[-1]["loss"] == pytest.approx(report.last_loss)
    assert report.as_dict()["model"] == str(report.model)


def test_a_model_in_memory_is_trained_in_place_and_left_clean(run: Run, base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    report = train(
        model,
        [WeightedTrajectory(trajectory=s.trajectory) for s in _some(run)],
        tokenizer=AutoTokenizer.from_pretrained(base),
        prompt=PROMPT,
        settings=SETTINGS,
        output_dir=tmp_path / "memory",
    )
    assert "forward" not in model.__dict__
    assert torch.equal(model.state_dict()["lm_head.weight"], weights(report.model)["lm_head.weight"])


def _some(run: Run) -> list[WeightedTrajectory]:
    from .conftest import trajectory

    return [WeightedTrajectory(trajectory=trajectory(i, 2)) for i in range(4)]


class Killed(Exception):
    pass


def killer(at: int) -> Callable[[dict[str, float]], None]:
    def on_log(metrics: dict[str, float]) -> None:
        if metrics["step"] == at:
            raise Killed

    return on_log


@pytest.mark.slow
def test_a_killed_training_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    changes = {"max_steps": 10, "save_every_steps": 3, "per_device_batch_size": 3}
    with pytest.raises(Killed):
        run("killed", on_log=killer(8), **changes)
    assert not (tmp_path / "killed/model.safetensors").exists()
    resumed = run("killed", **changes)
    whole = run("whole", **changes)
    assert (resumed.resumed_from_step, whole.resumed_from_step) == (6, 0)
    assert resumed.num_steps == whole.num_steps == 10
    assert same(resumed.model, whole.model)


def test_checkpoints_of_another_training_are_not_taken_up(run: Run) -> None:
    with pytest.raises(Killed):
        run(on_log=killer(4), save_every_steps=2)
    assert run(save_every_steps=2, learning_rate=1e-3).resumed_from_step == 0


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_checkpoint(
    run: Run, samples: list[WeightedTrajectory], tmp_path: Path
) -> None:
    poisoned = [dataclasses.replace(s, weight=1e38) for s in samples]
    with pytest.raises(TrainingError, match="the loss is inf at step 1") as caught:
        run("poisoned", poisoned)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "poisoned/model.safetensors").exists()
    # Diverging later: one sample of many is poisoned, and is met after the first checkpoint.
    late = [*samples[:15], dataclasses.replace(samples[15], weight=1e38)]
    changes = {"save_every_steps": 1, "max_steps": 16, "per_device_batch_size": 1, "group_by_length": False}
    with pytest.raises(TrainingError, match="the loss is inf at step"):
        run("late", late, seed=1, **changes)
    saved = list((tmp_path / "late/checkpoints").glob("checkpoint-*"))
    assert len(saved) == 1
    assert all(torch.isfinite(t).all() for t in weights(saved[0]).values())


def test_a_full_disk_is_one_line_and_leaves_no_half_model(run: Run, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(StorageError, match="cannot write the model to") as caught:
            run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/model.safetensors").exists()


def test_max_seconds_stops_and_still_saves(run: Run) -> None:
    report = run(max_seconds=1e-6, max_steps=50)
    assert (report.num_steps, report.stopped_by) == (1, "max_seconds")
    AutoModelForCausalLM.from_pretrained(report.model)


@pytest.mark.slow
def test_bf16_and_auto(run: Run) -> None:
    assert run("bf16", precision="bf16").precision == "bf16"
    assert run("auto", precision="auto", max_steps=1).precision in ("bf16", "fp32")
    assert next(iter(weights(run("again", precision="bf16").model).values())).dtype == torch.float32


@pytest.mark.parametrize(("small", "dtype"), [(16384, torch.float32), (0, torch.bfloat16)])
def test_short_attention_stays_in_float32_under_autocast(
    base: Path, monkeypatch: pytest.MonkeyPatch, small: int, dtype: torch.dtype
) -> None:
    from steca_gym.training import heads

    attention, seen = torch.nn.functional.scaled_dot_product_attention, set()

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = attention(*args, **kwargs)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(heads, "_SMALL", small)
    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.arange(12)[None] % model.config.vocab_size
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with heads.small_attention_in_float32(model):
            chosen = model(ids).logits
            assert "sdpa_small" not in json.dumps(model.config.to_dict())
        assert seen == {dtype}
        assert torch.allclose(chosen.float(), model(ids).logits.float(), atol=0.05)
    assert model.config._attn_implementation == "sdpa"


def test_adapters_are_merged_into_a_plain_folder(run: Run, base: Path) -> None:
    report = run(lora_rank=2, learning_rate=3e-2)
    assert not list(report.model.glob("adapter*"))
    before, after = weights(base), weights(report.model)
    assert before.keys() == after.keys()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all("proj" in k for k in changed)


def test_all_tokens_can_be_trained_on(run: Run) -> None:
    assert run("all", loss_on="all").num_loss_tokens > run("agent").num_loss_tokens


def test_a_folder_without_a_model(run: Run, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot load a causal language model") as caught:
        run(model=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_chat_template(run: Run, base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(bare)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(bare)
    with pytest.raises(StecaError, match="no chat template"):
        run(model=bare)


def test_equal_tokens_for_samples_of_different_length(run: Run, samples: list[WeightedTrajectory]) -> None:
    order = sorted(samples, key=lambda s: len(s.trajectory))
    short = run("short", data=order[:8], max_steps=None, max_tokens=3000)
    long = run("long", data=order[8:], max_steps=None, max_tokens=3000)
    assert short.num_steps > long.num_steps
    for report in (short, long):  # to within a step
        assert abs(report.num_tokens - 3000) <= report.num_tokens / report.num_steps


def short_of_memory(monkeypatch: pytest.MonkeyPatch, most_rows: int, error: BaseException) -> None:
    """Let a forward pass over more sequences than that fail as it does without memory, after some work."""
    forward = trl_adapter.token_nll

    def fail(model: Any, inputs: dict[str, torch.Tensor], **kwargs: Any) -> Any:
        found = forward(model, inputs, **kwargs)
        if len(inputs["input_ids"]) > most_rows:
            found[0].sum().backward()  # gradients that must not count
            raise error
        return found

    monkeypatch.setattr(trl_adapter, "token_nll", fail)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_without_memory_the_batch_is_read_in_parts(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    whole = run("whole")
    short_of_memory(monkeypatch, 1, error)
    parts = run("parts")
    assert same(whole.model, parts.model, tolerance=1e-5)
    assert parts.last_loss == pytest.approx(whole.last_loss, rel=1e-4)
    assert (parts.num_tokens, parts.num_loss_tokens) == (whole.num_tokens, whole.num_loss_tokens)
    assert [r.args for r in caplog.records if r.name == trl_adapter.__name__] == [(4, 2), (2, 1)]


def test_where_a_batch_cannot_be_split_one_line_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.raises(TrainingError, match="memory does not suffice for 1 sequences of .* tokens at step 1; set"):
        run("one")
    with pytest.raises(TrainingError, match="for 4 sequences .* set per_device_batch_size=2 and raise gradient_accum"):
        run("accumulated", gradient_accumulation_steps=2)


@pytest.mark.slow
def test_two_processes_train_like_one(run: Run, base: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES.format(tests=str(Path(__file__).resolve().parents[2])))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(script), str(base), str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "world_size=2" in done.stdout
    one = run("one", per_device_batch_size=8, group_by_length=False)
    assert same(one.model, tmp_path / "two", tolerance=1e-5)


_TWO_PROCESSES = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.training.conftest import PROMPT, trajectory
from tests.training.test_train import SETTINGS
from steca_gym.training import train
from steca_gym.trajectory import WeightedTrajectory

samples = [WeightedTrajectory(trajectory=trajectory(i, 1 + i % 4), weight=0.5 + i % 3) for i in range(16)]
settings = dataclasses.replace(SETTINGS, per_device_batch_size=4, group_by_length=False)
report = train(sys.argv[1], samples, prompt=PROMPT, settings=settings, output_dir=Path(sys.argv[2]))
print(f"world_size={{report.world_size}}")
"""


def test_importing_training_loads_no_torch() -> None:
    code = "import sys, steca_gym.training as t; t.TrainSettings(max_steps=1); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=dict(os.environ))
