from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steca_gym.errors import ConfigError, TrainingError
from steca_gym.training import Preference, PreferenceSettings, TrainReport
from steca_gym.training.preference import REFERENCE, _dpo, encode_pairs
from steca_gym.training.samples import IGNORED
from steca_gym.trajectory import PreferencePair

from .conftest import PROMPT, trajectory

SETTINGS = PreferenceSettings(max_steps=3, per_device_batch_size=4, learning_rate=1e-3, log_every_steps=1, seed=5)

Fit = Callable[..., TrainReport]


def pair(index: int, num_shared: int = 1) -> PreferencePair:
    """Two continuations of one prefix; the worse one is a step longer."""
    prefix = trajectory(index, num_shared)
    better, worse = trajectory(index + 100, 1).steps, trajectory(index + 200, 2).steps
    return PreferencePair(
        prefix=prefix,
        chosen=dataclasses.replace(prefix, steps=prefix.steps + better),
        rejected=dataclasses.replace(prefix, steps=prefix.steps + worse),
    )


PAIRS = [pair(i, i % 3) for i in range(8)]


@pytest.fixture
def fit(base: Path, tmp_path: Path) -> Fit:
    def call(name: str = "out", on_log: Any = None, data: Any = None, **changes: Any) -> TrainReport:
        trainer = Preference(dataclasses.replace(SETTINGS, **changes))
        return trainer.fit(base, PAIRS if data is None else data, tmp_path / name, prompt=PROMPT, on_log=on_log)

    return call


def log_prob(model: Any, side: Any) -> tuple[float, int]:
    """Summed over the covered tokens, without batches or padding; and their number."""
    (sample,) = side
    with torch.no_grad():
        logits = model(torch.tensor([sample.input_ids])).logits[0, :-1]
    labels = torch.tensor(sample.labels[1:])
    nll = torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    return -nll.item(), int((labels != IGNORED).sum())


def plain_loss(folder: Path, reference: Path, settings: PreferenceSettings) -> float:
    model, before = (AutoModelForCausalLM.from_pretrained(f) for f in (folder, reference))
    pairs, _ = encode_pairs(AutoTokenizer.from_pretrained(reference), PAIRS, PROMPT, max_length=4096)
    total = 0.0
    for one in pairs:
        (chosen, count), (rejected, _) = log_prob(model, one.chosen), log_prob(model, one.rejected)
        margin = settings.beta * (
            chosen - log_prob(before, one.chosen)[0] - rejected + log_prob(before, one.rejected)[0]
        )
        smooth = settings.label_smoothing
        total += (1 - smooth) * math.log1p(math.exp(-margin)) + smooth * math.log1p(math.exp(margin))
        total -= settings.sft_weight * chosen / count
    return total / len(pairs)


def test_the_loss_on_a_case_computed_by_hand() -> None:
    # Two pairs; sides: chosen 1, chosen 2, rejected 1, rejected 2. Negative log-likelihoods of the covered tokens in
    # order: chosen 1 has 1.0 and 2.0, chosen 2 has 0.5, rejected 1 has 4.0, rejected 2 has 0.25 and 0.25.
    # The rejected side of pair 2 is two sequences.
    covered = torch.tensor([[True, True], [True, False], [False, True], [True, False], [False, True]])
    nll = torch.tensor([1.0, 2.0, 0.5, 4.0, 0.25, 0.25])
    inputs = {"side": torch.tensor([0, 1, 2, 3, 3]), "reference": torch.tensor([-4.0, -1.0, -2.0, -1.5])}
    # log-ratios: chosen -3 + 4 = 1 and -0.5 + 1 = 0.5; rejected -4 + 2 = -2 and -0.5 + 1.5 = 1.
    # margins with beta 0.5: 0.5 * (1 + 2) = 1.5 and 0.5 * (0.5 - 1) = -0.25.
    # pair 1: 0.9 * log(1 + e^-1.5) + 0.1 * log(1 + e^1.5) + 0.2 * mean(1, 2) = 0.351413 + 0.3
    # pair 2: 0.9 * log(1 + e^0.25) + 0.1 * log(1 + e^-0.25) + 0.2 * 0.5   = 0.800939 + 0.1
    settings = PreferenceSettings(max_steps=1, beta=0.5, label_smoothing=0.1, sft_weight=0.2)
    loss, metrics = _dpo(inputs, nll, covered, settings)
    assert loss.item() == pytest.approx(0.651413 + 0.900939, abs=2e-6)
    assert metrics["reward_margin"].item() == pytest.approx(1.25)
    assert metrics["reward_accuracy"].item() == 1


def test_the_first_loss_is_log_two_and_training_widens_the_margin(fit: Fit, base: Path) -> None:
    logs: list[dict[str, float]] = []
    report = fit(on_log=logs.append, per_device_batch_size=8)
    assert report.first_loss == pytest.approx(math.log(2), rel=1e-5)
    assert logs[-1]["reward_margin"] > logs[0]["reward_margin"] == pytest.approx(0, abs=1e-4)
    assert report.metrics["reward_accuracy"] == 1
    assert plain_loss(report.model, base, SETTINGS) < report.last_loss < report.first_loss


def test_the_loss_is_that_of_a_plain_loop(fit: Fit, base: Path) -> None:
    changes = {"label_smoothing": 0.1, "sft_weight": 0.5, "beta": 0.3, "per_device_batch_size": 8}
    losses: list[float] = []
    first = fit("one", max_steps=1, schedule="constant", **changes)
    fit("two", lambda m: losses.append(m["loss"]), max_steps=2, schedule="constant", **changes)
    settings = dataclasses.replace(SETTINGS, **changes)
    assert losses == pytest.approx(
        [plain_loss(base, base, settings), plain_loss(first.model, base, settings)], rel=1e-4
    )


def test_only_trainable_turns_after_the_prefix_are_covered(base: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    one = pair(3, 2)
    (encoded,), num_cut = encode_pairs(tokenizer, [one], PROMPT, max_length=4096)
    for (side,), steps in ((encoded.chosen, one.chosen_steps), (encoded.rejected, one.rejected_steps)):
        text = tokenizer.decode([label for label in side.labels if label != IGNORED])
        assert text == "".join(step.turn_text() + "<|im_end|>" for step in steps)
    assert num_cut == 0


def test_the_gradient_does_not_depend_on_accumulation(fit: Fit) -> None:
    norms: dict[int, list[float]] = {1: [], 4: []}
    for k, seen in norms.items():
        fit(
            f"accumulation-{k}",
            lambda m, seen=seen: seen.append(m["grad_norm"]),
            per_device_batch_size=8 // k,
            gradient_accumulation_steps=k,
            max_steps=1,
            max_grad_norm=1e9,
            sft_weight=0.5,
        )
    assert norms[4] == pytest.approx(norms[1], rel=1e-4)


def test_reference_log_probabilities_are_computed_once(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    before = (tmp_path / "out" / REFERENCE).read_bytes()
    from steca_gym.training import heads

    original = heads.token_nll

    def trained_only(model: Any, *args: Any, **kwargs: Any) -> Any:
        assert torch.is_grad_enabled(), "the reference was computed again"
        return original(model, *args, **kwargs)

    monkeypatch.setattr(heads, "token_nll", trained_only)
    fit(beta=0.2)
    assert (tmp_path / "out" / REFERENCE).read_bytes() == before


@pytest.mark.slow
def test_a_killed_training_resumes_to_equal_weights(fit: Fit) -> None:
    def killed(metrics: dict[str, float]) -> None:
        if metrics["step"] > 2:
            raise RuntimeError("killed")

    whole = fit("whole", save_every_steps=1)
    with pytest.raises(RuntimeError, match="killed"):
        fit(on_log=killed, save_every_steps=1)
    resumed = fit(save_every_steps=1)
    assert resumed.resumed_from_step == 2 and resumed.metrics == whole.metrics
    a, b = (AutoModelForCausalLM.from_pretrained(r.model).state_dict() for r in (whole, resumed))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_adapters_and_checkpointing_of_activations(fit: Fit, base: Path) -> None:
    report = fit(lora_rank=2, lora_alpha=8, lora_target_modules=("q_proj", "v_proj"), learning_rate=3e-2)
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (base, report.model))
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed and all("q_proj" in k or "v_proj" in k for k in changed)
    plain, recomputed = fit("plain", max_steps=1), fit("recomputed", max_steps=1, gradient_checkpointing=True)
    a, b = (AutoModelForCausalLM.from_pretrained(r.model).state_dict() for r in (plain, recomputed))
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-6) for k in a)


def test_pairs_without_tokens_to_train_on_are_dropped_and_counted(fit: Fit, base: Path) -> None:
    (encoded,), _ = encode_pairs(AutoTokenizer.from_pretrained(base), PAIRS[:1], PROMPT, max_length=4096)
    length = encoded.length
    report = fit(data=[PAIRS[0], pair(50, 6)], max_length=length)
    assert (report.num_samples, report.num_dropped, report.num_cut) == (1, 1, 0)
    with pytest.raises(TrainingError, match="nothing to train on: 0 pairs"):
        fit("none", data=[])


@pytest.mark.parametrize("bad", [{"beta": 0}, {"beta": float("nan")}, {"sft_weight": -1}, {"label_smoothing": 0.5}])
def test_bad_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        PreferenceSettings(max_steps=1, **bad)


@pytest.mark.slow
def test_two_processes_train_like_one(fit: Fit, base: Path, tmp_path: Path) -> None:
    script = tmp_path / "two.py"
    script.write_text(_TWO_PROCESSES.format(tests=str(Path(__file__).resolve().parents[2])))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(script), str(base), str(tmp_path / "two")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "world_size=2" in done.stdout
    one = fit("one", per_device_batch_size=4, group_by_length=False)
    a, b = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (one.model, tmp_path / "two"))
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-5) for k in a)


_TWO_PROCESSES = """
import dataclasses, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from tests.training.conftest import PROMPT
from tests.training.test_preference import PAIRS, SETTINGS
from steca_gym.training import Preference

settings = dataclasses.replace(SETTINGS, per_device_batch_size=2, group_by_length=False)
report = Preference(settings).fit(Path(sys.argv[1]), PAIRS, Path(sys.argv[2]), prompt=PROMPT)
print(f"world_size={{report.world_size}}")
"""
