"""Every command explains itself, takes ``--config-dir`` and the whole of Hydra's grammar, and ends in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from steca_gym.cli import commands, main

CONF = ["--config-dir", str(Path(__file__).resolve().parents[1] / "conf")]


@pytest.mark.parametrize("name", list(commands()))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--help"], [*CONF, "--help"]):
        assert main([name, *args]) == 0
        captured = capsys.readouterr()
        assert f"steca {name}" in captured.out and not captured.err


def test_the_help_of_a_run_shows_every_training_key_with_its_comment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "agent=tiny", "--help"]) == 0
    out = capsys.readouterr().out
    for key in ("lora_rank", "gradient_accumulation_steps", "precision"):
        for stage in ("warm_up", "train"):
            (line,) = [x for x in out.splitlines() if x.strip().startswith(f"agent.{stage}.{key}=")]
            assert "# " in line, line
    assert "method: " in out and "steca" in out


def test_the_help_comes_from_the_chosen_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "env=household", "--help"]) == 0
    lines = {line.strip().partition("=")[0]: line for line in capsys.readouterr().out.splitlines() if "=" in line}
    # What describes a whole file, or another choice, is no comment of a key.
    for key in ("env.id", "method.name", "executor.name", "encoder._target_", "reflector.name", "logger.jsonl.name"):
        assert "#" not in lines[key], lines[key]
    assert "furniture" in lines["env.kwargs.num_receptacles"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["run", "seed=abc"], "seed must be a whole number, got 'abc'"),
        (["run", "seed="], "seed must be a whole number, got ''"),
        (["run", "seed=-1"], "seed must be >= 0, got -1"),
        (["run", "seed=1.5"], "seed must be a whole number, got 1.5"),
        (["run", "env.id=7"], "env.id must be a text, got 7"),
        (["run", "env.num_eval_tasks=-1"], "num_eval_tasks must be >= 1, got -1"),
        (["run", "env.num_train_tasks=-9990"], "num_train_tasks must be >= 1, got -9990"),
        (["run", "agent.train.max_steps=x"], "agent.train.max_steps must be a whole number"),
        (["run", "agent.train.precision=fp8"], "precision must be one of"),
        (["run", "agent.train.lora_rnak=2"], "did you mean 'agent.train.lora_rank'"),
        (["run", "method.num_rounds=0"], "num_rounds must be >= 1, got 0"),
        (["run", "exploration.num_experts=-3"], "num_experts must be >= 1 or null, got -3"),
        (["run", "preset.num_replayed=-3"], "num_replayed must be >= 0 or null, got -3"),
        (["run", "method.explore_from=expert"], "explore_from must be one of corrected, experts, got 'expert'"),
        (["run", "preset.calibration.delta=two"], "delta must be a number, got 'two'"),
        (["run", "env.prompt.instruction=${x}"], "not"),
        (["run", "env.prompt.examples="], "examples must be a list"),
        (["run", "method=sft,steca"], "put -m first: steca run -m method=sft,steca"),
        (["run", "seed=range(3)"], "put -m first"),
        (["run", "seed=choice(1,2)"], "put -m first"),
        (["run", "env.nothing=3", "--cfg", "job"], "no setting or group 'env.nothing'"),
        (["run", "agent.reinforce.max_steps=3"], "agent.reinforce.max_steps is now called agent.train.max_steps"),
        (["run", "preset.step_rewards.patience=2"], "is now called preset.step_rewards.max_length_ratio"),
        (["run", "collector=processes"], "collector=processes is now called executor=processes"),
        (["run", "executor=processes", "executor.num_workers=0"], "num_workers must be >= 1, got 0"),
        (["run", "logger=null"], "no logger 'None'"),
        (["run", "env=null"], "no env 'None'"),
        (["run", "until=nowhere"], "no stage of method 'steca' 'nowhere'"),
        (["run", "env.eval_split=nowhere"], "no split 'nowhere'"),
        (["run", "env.eval_split=train"], "fed training or calibration"),
        (["run", "run=/nowhere"], "no run in '/nowhere'"),
        (["run", "env.id"], "not an override"),
        (["run", "a b=c"], "not an override"),
        (["compare", "methods=[]"], "at least one method"),
        (["compare", "method=sft"], "compare takes methods=[...]"),
        (["compare", "methods=[sft,stecca]"], "did you mean 'steca'"),
        (["compare", "--nothing"], "got '--nothing'"),
        (["table"], "table needs a path"),
        (["table", "/nowhere"], "no runs in /nowhere"),
        (["table", "/nowhere", "format=pdf"], "format must be one of text, markdown, latex, csv"),
        (["export", "run=/nowhere", "two"], "got 'two'"),
        (["fetch"], "takes the name of one world, got 0"),
        (["evaluate", "model=/nowhere"], "/nowhere"),
        (["nothing:here"], "cannot import command"),
        (["run", "--nothing"], "no flag of steca run '--nothing'"),
        (["run", "--cfg"], "--cfg takes one of job, hydra, all, got ''"),
        (["run", "--config-dir"], "--config-dir needs a folder after it"),
        (["run", "encoder=nowhere:Thing"], "cannot import encoder 'nowhere:Thing'"),
        (["run", "encoder.dim=0"], "dim must be >= 8 buckets, got 0"),
        (["run", "encoder.dim=abc"], "must be int, got 'abc'"),
        (["run", "reflector=json:JSONDecoder"], "has no reflect()"),
        (["run", "+reflector.lenght=3"], "no setting of reflector"),
        (["run", "expert=json:JSONDecoder"], "has no act()"),
        (["run", "agent=nowhere:Agent"], "cannot import agent 'nowhere:Agent'"),
        (["run", "agent=json:JSONDecoder"], "has no act()"),
        (["run", "agent.engine.dtype=float99"], "dtype must be one of"),
        (["run", "agent.engine.max_batch_size=0"], "max_batch_size must be >= 1 row, got 0"),
        (["run", "agent.build.num_layers=0"], "num_layers must be >= 1, got 0"),
        (["run", "+agent.build.num_layrs=2"], "did you mean 'num_layers'"),
        (["run", "collector.num_envs=0"], "num_envs must be >= 1, got 0"),
        (["run", "collector.num_envs=many"], "collector.num_envs must be a whole number, got 'many'"),
        (["run", "executor=processes", "executor.num_workers=many"], "must be int, got 'many'"),
        (["run", "env.prompt.examples=[{role:nobody,content:hi}]"], "role must be one of system, user, assistant"),
        (["compare", "methods=[sft,sft]"], "methods names one twice"),
        (["compare", "run_dir=x"], "give runs_root=FOLDER"),
        (["evaluate", "model="], "model= names nothing"),
        (["check-env", "steca_gym.envs:steca/Household-v0", "horizon=["], "cannot read horizon=["),
        (["check-env", "steca_gym.envs:steca/Household-v0", "horizn"], "takes key=value arguments"),
        (["check-env", "nowhere:me/World-v0"], "cannot make environment"),
    ],
)
def test_a_mistake_ends_in_one_line(
    args: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(args) in (2, 3, 4)
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("steca: ")]
    assert len(lines) == 1, lines
    assert words in lines[0], lines[0]


def test_a_command_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_commands.py").write_text("def hello(args):\n    print('hello', *args)\n    return 7\n")
    assert main(["my_commands:hello", "--config-dir", str(tmp_path), "x"]) == 7
    assert capsys.readouterr().out.split() == ["hello", "x"]


def test_a_finished_run_prints_its_table_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", *CONF, "env=corridor", "agent=expert", f"run_dir={tmp_path}"]
    tables = []
    for _ in range(2):
        assert main(command) == 0
        err = capsys.readouterr().err
        tables.append(err[err.index("┏") : err.index("┘")])
        assert "100.0 %" in tables[-1]
    assert tables[0] == tables[1]
    assert main(["table", str(tmp_path), "format=markdown"]) == 0
    assert "| none | 1 | 100.0 % (51.0 to 100.0) |" in capsys.readouterr().out
    assert main(["table", str(tmp_path), "format=csv", "by=seed"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.startswith("method,seed,num_runs") and row.startswith("none,0,1,0,4,1.0")
