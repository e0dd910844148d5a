"""Training in several processes, under the real launchers: losses and weights are those of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.training.checkpoints import CHECKPOINTS
from steca_gym.training.launch import launch_config, launch_configs
from steca_gym.training.processes import Processes

ROOT = Path(__file__).resolve().parents[2]

# Accelerate shards nothing on a CPU; told that its processes are those of GPUs, it does, over gloo.
_AS_GPUS = """
from accelerate import PartialState
from accelerate.utils import DistributedType
begin = PartialState.__init__
def init(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU
PartialState.__init__ = init
"""

_OFFLINE = """
import dataclasses, json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.training.conftest import PROMPT, trajectory
from tests.training import test_preference, test_train
from steca_gym.training import Preference, WeightedSFT
from steca_gym.trajectory import WeightedTrajectory

trainer, base, out, batch = sys.argv[1:5]
if trainer == "weighted_sft":
    data = [WeightedTrajectory(trajectory=trajectory(i, 1 + i % 4), weight=0.5 + i % 3) for i in range(16)]
    made, settings = WeightedSFT, test_train.SETTINGS
else:
    data, made, settings = test_preference.PAIRS, Preference, test_preference.SETTINGS
changes = json.loads(sys.argv[5]) if len(sys.argv) > 5 else {{}}
settings = dataclasses.replace(settings, per_device_batch_size=int(batch), group_by_length=False, **changes)
report = made(settings).fit(base, data, Path(out), prompt=PROMPT)
if os.environ.get("RANK", "0") == "0":
    figures = dict(world_size=report.world_size, first=report.first_loss, last=report.last_loss)
    Path(out + ".json").write_text(json.dumps(figures))
"""

_ONLINE = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from steca_gym.training import PolicyGradient, PolicyGradientSettings
from tests.training.conftest import PROMPT
from tests.training.test_policy_gradient import EPISODES, LiveFake, group

base, out, different = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "different"
settings = PolicyGradientSettings(
    learning_rate=1e-3, num_passes=2, num_minibatches=2, clip_range=0.2, kl_coef=0.1, entropy_coef=0.01
)
trainer = PolicyGradient(settings, agent=LiveFake(base), prompt=PROMPT)
rank = int(os.environ.get("RANK", "0"))
episodes = EPISODES[:-1] if different and rank else EPISODES
steps = [dict(trainer.step([group(episodes=episodes)])) for _ in range(2)]
trainer.save(Path(out))
trainer.restore(Path(out))
steps.append(dict(trainer.step([group(episodes=episodes)])))
if rank == 0:
    Path(out + ".json").write_text(json.dumps(dict(world_size=trainer.processes.size, steps=steps)))
"""


def launch(script: str, *args: object, folder: Path, config: str = "", ok: bool = True) -> str:
    """Run a script, alone or with two processes under `accelerate launch`; returns its error stream."""
    file = folder / "script.py"
    file.write_text(script.format(root=str(ROOT)))
    command = [sys.executable]
    if config:
        command += ["-m", "accelerate.commands.launch", "--config_file", str(launch_config(config))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, str(file), *map(str, args)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == ok, done.stderr[-3000:]
    return done.stderr


def figures(out: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads(Path(f"{out}.json").read_text())
    return found


def same_weights(one: Path, two: Path) -> bool:
    a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-5) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "fsdp2"])
@pytest.mark.parametrize("trainer", ["weighted_sft", "preference"])
def test_two_launched_processes_train_like_one(trainer: str, config: str, base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(_OFFLINE, trainer, base, one, 4, folder=tmp_path)
    launch(_AS_GPUS * (config == "fsdp2") + _OFFLINE, trainer, base, two, 2, folder=tmp_path, config=config)
    alone, together = figures(one), figures(two)
    assert (alone.pop("world_size"), together.pop("world_size")) == (1, 2)
    assert together == pytest.approx(alone, rel=1e-4)
    assert same_weights(one, two)
    AutoModelForCausalLM.from_pretrained(two)


@pytest.mark.slow
def test_an_online_training_in_two_processes_is_that_of_one(base: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    launch(_ONLINE, base, one, "same", folder=tmp_path)
    launch(_ONLINE, base, two, "same", folder=tmp_path, config="ddp")
    alone, together = json.loads(Path(f"{one}.json").read_text()), json.loads(Path(f"{two}.json").read_text())
    assert (alone["world_size"], together["world_size"]) == (1, 2)
    for mine, theirs in zip(alone["steps"], together["steps"], strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-6)
    assert same_weights(one, two)


@pytest.mark.slow
def test_what_an_online_training_in_processes_refuses(base: Path, tmp_path: Path) -> None:
    said = launch(_ONLINE, base, tmp_path / "out", "different", folder=tmp_path, config="ddp", ok=False)
    assert "process 1 was given other episodes than process 0" in said
    said = launch(_ONLINE, base, tmp_path / "out", "same", folder=tmp_path, config="fsdp2", ok=False)
    assert "launch with the configuration ddp" in said


@pytest.mark.slow
def test_a_checkpoint_of_another_number_of_processes_is_refused(base: Path, tmp_path: Path) -> None:
    out, killed = tmp_path / "out", 'os.environ["RANK"] == "0" and os._exit(9)'
    stop = (
        "import os, transformers\n"
        "class Stop(transformers.TrainerCallback):\n"
        "    def on_save(self, args, state, control, **_):\n"
        f"        state.global_step >= 2 and os.environ.get('LIVE') and {killed}\n"
        "from steca_gym.training import trl_adapter\n"
        "original = trl_adapter.make_trainer\n"
        "def make(*args, **kwargs):\n"
        "    trainer, clock = original(*args, **kwargs)\n"
        "    trainer.add_callback(Stop())\n"
        "    return trainer, clock\n"
        "os.environ['LIVE'] = '1'\n"
        "trl_adapter.make_trainer = make\n"
    )
    often = '{"save_every_steps": 1}'
    launch(stop + _OFFLINE, "weighted_sft", base, out, 2, often, folder=tmp_path, config="ddp", ok=False)

    assert list((out / CHECKPOINTS).glob("checkpoint-*"))
    said = launch(_OFFLINE, "weighted_sft", base, out, 2, often, folder=tmp_path, ok=False)
    assert "was written by 2 processes, and this training has 1" in said
    launch(_OFFLINE, "weighted_sft", base, out, 2, often, folder=tmp_path, config="ddp")
    assert figures(out)["world_size"] == 2


def test_the_shipped_configurations_are_accelerates() -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    kinds = {name: load_config_from_file(str(launch_config(name))) for name in launch_configs()}
    assert {name: config.distributed_type.value for name, config in kinds.items()} == {
        "ddp": "MULTI_GPU",
        "fsdp2": "FSDP",
        "deepspeed_zero2": "DEEPSPEED",
        "deepspeed_zero3": "DEEPSPEED",
    }
    assert kinds["fsdp2"].fsdp_config["fsdp_version"] == 2
    assert [kinds[f"deepspeed_zero{stage}"].deepspeed_config["zero_stage"] for stage in (2, 3)] == [2, 3]
    with pytest.raises(UnknownNameError, match="did you mean 'fsdp2'"):
        launch_config("fsdp3")
    shown = subprocess.run(
        [sys.executable, "-m", "steca_gym.training.launch", "ddp"], capture_output=True, text=True, check=True
    )
    assert Path(shown.stdout.strip()) == launch_config("ddp")


def test_one_process_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    alone = Processes()
    assert (alone.rank, alone.size, alone.share([3, 1, 2])) == (0, 1, [3, 1, 2])
    assert alone.sums({"loss": 2.0}, ("loss",), "cpu") == {"loss": 2.0}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(ConfigError, match="DEEPSPEED"):
        Processes()
