"""A run folder that somebody sent cannot run code; one's own continues as before."""

import json
import os
import shutil

import pytest

from steca_gym.cli import main
from steca_gym.errors import ConfigError
from steca_gym.runs import trust
from steca_gym.runs.trust import check_trusted, named_code, seal
from tests.methods.playing import SMALL
from tests.runs.test_runner import CONF

EVIL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Thing:\n    pass\n"


@pytest.fixture(autouse=True)
def mine(tmp_path, monkeypatch):
    """A user of one's own, who allows nothing."""
    monkeypatch.setenv("STECA_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STECA_TRUST", raising=False)
    monkeypatch.setattr(trust, "_allowed", set())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil_module.py").write_text(EVIL)
    return tmp_path


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """A run of somebody else's: its seal is of another key."""
    folder = tmp_path_factory.mktemp("sent") / "run"
    cache = os.environ.get("STECA_CACHE")
    os.environ["STECA_CACHE"] = str(folder.parent / "cache")
    try:
        assert main(["collect", *CONF, *SMALL, "method=steca", f"run_dir={folder}"]) == 0
    finally:
        os.environ.pop("STECA_CACHE") if cache is None else os.environ.update(STECA_CACHE=cache)
    return folder


def sent(collected, tmp_path, *, overrides=(), settings=(), config_dirs=()):
    folder = tmp_path / "run"
    shutil.copytree(collected, folder)
    raw = json.loads((folder / "run.json").read_text())
    raw["config_dirs"] = list(config_dirs)
    raw["overrides"] = [o for o in raw["overrides"] if not o.startswith("env=")] + ["env=household", *overrides]
    raw["settings"]["env"] = {"id": "steca_gym.envs:steca/Household-v0", "kwargs": {}}
    for path, value in settings:
        held = raw["settings"]
        for part in path.split(".")[:-1]:
            held = held.setdefault(part, {})
        held[path.rsplit(".", 1)[-1]] = value
    (folder / "run.json").write_text(json.dumps(raw))
    return folder


OVERRIDES = [
    "expert._target_=evil_module.Thing",
    "+expert._target_='evil_module.Thing'",
    "agent.engine._target_=evil_module.Thing",
    "expert={_target_: evil_module.Thing}",
    "method=evil_module:Thing",
    "agent=evil_module:Thing",
    "env.id=evil_module:me/World-v0",
    "agent.turn_format=evil_module:Thing",
    "reflector.name=evil_module:Thing",
    "hydra/launcher=joblib",
    "+hydra.callbacks.x._target_=evil_module.Thing",
    "logger={_target_: os.system, command: id}",
    "logger=[jsonl,evil_module:Thing]",
    "logger=['evil_module:Thing', jsonl]",
    "logger.custom.name=evil_module:Thing",
]


@pytest.mark.parametrize("override", OVERRIDES)
def test_no_command_runs_what_sent_overrides_name(collected, tmp_path, override, capsys):
    folder = sent(collected, tmp_path, overrides=[override])
    for command in (
        ["run", f"run={folder}"],
        ["train", f"run={folder}"],
        ["evaluate", f"run={folder}"],
        ["diagnose", f"run={folder}"],
        ["review", str(folder)],
        ["run", f"run_dir={folder}", "env=household"],
    ):
        assert main(command) == 2, command
        line = [x for x in capsys.readouterr().err.splitlines() if x.startswith("steca: ")][-1]
        assert "was not written by you" in line and "--trust" in line
    for command in (
        ["report", str(folder)],
        ["inspect", str(folder)],
        ["table", str(folder)],
        ["export", f"run={folder}"],
    ):
        assert main(command) == 0, command
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "setting",
    [
        ("expert._target_", "evil_module.Thing"),
        ("encoder._target_", "evil_module.Thing"),
        ("agent.engine", {"_target_": "evil_module.Thing"}),
        ("method", {"name": "evil_module:Thing"}),
        ("env.id", "evil_module:me/World-v0"),
        ("logger", [{"_target_": "subprocess.run"}]),
        ("logger", {"custom": {"name": "evil_module:Thing"}}),
    ],
)
def test_no_command_runs_what_sent_settings_name(collected, tmp_path, setting):
    folder = sent(collected, tmp_path, settings=[setting])
    with pytest.raises(ConfigError, match="was not written by you"):
        check_trusted(folder, json.loads((folder / "run.json").read_text()))
    assert main(["review", str(folder)]) == 2 and main(["report", str(folder)]) == 0
    assert not (tmp_path / "ran").exists()


def test_sent_folders_of_configurations_are_refused(collected, tmp_path):
    assert main(["run", f"run={sent(collected, tmp_path, config_dirs=[str(tmp_path)])}"]) == 2


def test_a_sent_run_without_code_of_others_opens(collected, tmp_path, capsys):
    folder = sent(collected, tmp_path)
    check_trusted(folder, json.loads((folder / "run.json").read_text()))


def test_what_the_user_allows_is_named_and_nothing_else(collected, tmp_path, monkeypatch):
    folder = sent(collected, tmp_path, overrides=["expert._target_=evil_module.Thing"])
    raw = json.loads((folder / "run.json").read_text())
    assert trust.take_trust(["run", "--trust", "other_module"]) == ["run"]
    with pytest.raises(ConfigError, match="--trust evil_module"):
        check_trusted(folder, raw)
    assert trust.take_trust(["--trust=evil_module", "x"]) == ["x"]
    check_trusted(folder, raw)
    for wrong in (["--trust"], ["--trust", "a b"], ["--trust=../x"]):
        with pytest.raises(ConfigError, match="--trust"):
            trust.take_trust(wrong)


def test_ones_own_run_continues_and_a_changed_one_does_not(tmp_path, capsys):
    folder = tmp_path / "own"
    assert main(["collect", *CONF, *SMALL, "method=steca", f"run_dir={folder}"]) == 0
    raw = json.loads((folder / "run.json").read_text())
    assert raw["config_dirs"] and raw["seal"] == seal(raw)
    assert main(["collect", f"run={folder}"]) == 0
    raw["overrides"].append("expert._target_=evil_module.Thing")
    (folder / "run.json").write_text(json.dumps(raw))
    assert main(["collect", f"run={folder}"]) == 2 and not (tmp_path / "ran").exists()


def test_the_key_is_the_users_alone(tmp_path):
    assert seal({"overrides": []})
    key = tmp_path / "cache" / "run-key"
    assert key.stat().st_mode & 0o077 == 0 and len(key.read_bytes()) == 32
    key.chmod(0o644)  # others could have read it
    assert seal({"overrides": []}) == ""


def test_prose_and_addresses_are_no_code():
    raw = {
        "overrides": ["agent.endpoint.base_url=http://localhost:8000/v1", "review.mode=sample:0.1", "seed=3"],
        "settings": {
            "env": {"prompt": {"instruction": "note:well"}},
            "a": "http://host:1/x",
            "b": "12:30",
            "c": ["x: y"],
        },
    }
    assert list(named_code(raw)) == []
