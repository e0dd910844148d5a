"""Each export is opened by the library that it is for."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from steca_gym.chat.control_tokens import encodable
from steca_gym.cli import main
from steca_gym.interop.demonstrations import import_recordings, read_recordings
from steca_gym.interop.exports import RunData
from steca_gym.interop.exports.rows import conversation
from steca_gym.runs import RunFolder
from tests.fakes import corridor, tiny_model, tiny_tokenizer

SYSTEM = "You walk through a corridor."


def make_run(folder: Path, *, empty: bool = False) -> Path:
    """A run's folder with expert episodes and a lost one, as a method would leave it."""
    from steca_gym.agent import Prompt
    from steca_gym.buffer import CalibrationBuffer
    from steca_gym.collectors import Collector, EpisodeRequest
    from tests.fakes import FakeAgent

    folder.mkdir(parents=True)
    settings = {"env": {"id": "corridor", "kwargs": {}, "prompt": {"instruction": SYSTEM, "examples": []}}}
    record = {
        "format": 2,
        "version": "0.1.0",
        "method": "eto",
        "seed": 7,
        "overrides": [],
        "settings": settings,
        "stages": {},
    }
    (folder / "run.json").write_text(json.dumps(record))
    with CalibrationBuffer(folder / "buffer.sqlite") as buffer:
        for kind, turns in (("expert", ["right", "right", "open"]), ("own_lost", ["right", "jump"])):
            if empty:
                continue
            agent = FakeAgent(lambda request, turns=turns: f"Thought: I go \ud83c.\nAction: {turns[request.turn]}")
            with Collector(corridor(), agent, prompt=Prompt(instruction=SYSTEM)) as collector:
                played = collector.run([EpisodeRequest(task_id="corridor-2", seed=s) for s in (3, 4)])
            assert all(e.trajectory.status != "error" for e in played), played[0].trajectory.error
            buffer.add_trajectories([e.trajectory for e in played], kind=kind)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "mine")


def exported(run: Path, to: Path, form: str, *args: str) -> Path:
    assert main(["export", f"run={run}", f"format={form}", f"to={to}", *args]) == 0
    return to


def loaded(folder: Path):
    datasets = pytest.importorskip("datasets", reason="needs the extra llm")
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / "cache"))


@pytest.mark.parametrize("form", ["messages", "tools", "turns", "preferences"])
def test_trl_calls_a_dataset_conversational(form: str, run: Path, tmp_path: Path) -> None:
    data = loaded(exported(run, tmp_path, form))
    from trl.data_utils import is_conversational

    assert all(map(is_conversational, data)) and len(data) == {"messages": 4, "tools": 4, "turns": 10}.get(form, 2)


def test_messages_hold_prompt_mask_and_weight(run: Path, tmp_path: Path) -> None:
    row = loaded(exported(run, tmp_path, "messages", "kind=expert"))[0]
    assert row["messages"][0] == {"role": "system", "content": SYSTEM}
    assert [m["role"] for m in row["messages"]] == ["system", "user"] + ["assistant", "user"] * 2 + ["assistant"]
    assert row["train"] == [m["role"] == "assistant" for m in row["messages"]]
    assert row["weight"] == 1.0 and row["won"] and row["kind"] == "expert"


def test_the_card_is_read_by_the_hub_library(run: Path, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="needs the extra llm")
    card = hub.DatasetCard.load(exported(run, tmp_path, "messages") / "README.md")
    assert card.data.license is None and card.data.configs[0]["config_name"] == "default"
    assert "`corridor`" in card.text and "seed of the run: 7" in card.text and "| `train` |" in card.text


def trainer_settings(folder: Path) -> dict:
    return dict(
        output_dir=str(folder / "out"),
        max_steps=1,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        max_length=512,
    )


TOOLS_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if m['tool_calls'] %}"
    "{{ m['tool_calls'] | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["messages", "tools", "turns", "preferences"])
def test_trl_trains_on_it_directly(form: str, run: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="needs the extra llm")
    data = loaded(exported(run, tmp_path / "data", form))
    kind, config = (trl.DPOTrainer, trl.DPOConfig) if form == "preferences" else (trl.SFTTrainer, trl.SFTConfig)
    tokenizer = tiny_tokenizer(TOOLS_TEMPLATE) if form == "tools" else tiny_tokenizer()
    tiny_model().save_pretrained(tmp_path / "model")  # DPO loads its reference model from there
    trainer = kind(
        str(tmp_path / "model"),
        args=config(**trainer_settings(tmp_path)),
        train_dataset=data,
        processing_class=tokenizer,
    )
    assert math.isfinite(trainer.train().training_loss) and trainer.state.global_step == 1


def test_minari_goes_out_and_comes_back_equal(run: Path, tmp_path: Path) -> None:
    minari = pytest.importorskip("minari", reason="needs the extra minari")
    for needed in ("h5py", "PIL"):
        pytest.importorskip(needed, reason="needs the extra minari")
    folder = exported(run, tmp_path, "minari") / "steca-v0"
    dataset = minari.MinariDataset(folder / "data")
    assert dataset.total_episodes == 4 and sum(float(sum(e.rewards)) for e in dataset) == 2.0
    found = import_recordings(list(read_recordings(folder)), corridor(), split="train")
    back = [f.trajectory for f in found if f.trajectory is not None]
    before = [r.trajectory for r in RunData(run, "expert").rows()]

    def content(t):
        return (
            t.task_id,
            t.seed,
            t.first_observation,
            t.score,
            [(encodable(s.thought), s.action, s.observation, s.score) for s in t.steps],
        )

    assert [content(t) for t in back] == [content(t) for t in before] and len(found) == 4


def test_a_killed_export_to_minari_leaves_no_half_dataset(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    minari = pytest.importorskip("minari", reason="needs the extra minari")
    for needed in ("h5py", "PIL"):
        pytest.importorskip(needed, reason="needs the extra minari")
    made = minari.create_dataset_from_buffers

    def killed(*args: Any, **kwargs: Any) -> None:
        made(*args, **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(minari, "create_dataset_from_buffers", killed)
        assert main(["export", f"run={run}", "format=minari", f"to={tmp_path}"]) == 130
    folder = tmp_path
    assert not (folder / "steca-v0").exists()
    for _ in range(2):  # the second one replaces the first
        exported(run, tmp_path, "minari")
        assert os.listdir(folder) == ["steca-v0"]
    metadata = folder / "steca-v0" / "data" / "metadata.json"
    metadata.write_text(metadata.read_text().replace(f"of {run.name}", "of another"))
    assert main(["export", f"run={run}", "format=minari", f"to={tmp_path}"]) == 3
    assert "is no export of this run" in capsys.readouterr().err


def atif_problems(document: dict) -> list[str]:
    """The rules of the specification, for where Harbor is not installed."""
    found = []
    if [s["step_id"] for s in document["steps"]] != list(range(1, len(document["steps"]) + 1)):
        found.append("step_id must count from 1")
    for step in document["steps"]:
        if step["source"] not in ("system", "user", "agent") or not isinstance(step["message"], str):
            found.append("source or message")
        if step["source"] != "agent" and {"tool_calls", "metrics", "reasoning_content"} & set(step):
            found.append("agent's fields on another's step")
        calls = {c["tool_call_id"] for c in step.get("tool_calls", [])}
        for result in step.get("observation", {}).get("results", []):
            if result.get("source_call_id") not in (None, *calls):
                found.append("a result of no call")
    return found


def test_atif_is_valid(run: Path, tmp_path: Path) -> None:
    files = sorted(exported(run, tmp_path, "atif").glob("*/*.json"))
    documents = [json.loads(f.read_text()) for f in files]
    assert len(documents) == 4 and not [p for d in documents for p in atif_problems(d)]
    assert documents[0]["steps"][0] == {"step_id": 1, "source": "system", "message": SYSTEM}
    assert documents[0]["steps"][2]["tool_calls"][0]["arguments"] == {"action": "right"}


def test_harbor_reads_atif(run: Path, tmp_path: Path) -> None:
    models = pytest.importorskip("harbor.models.trajectories", reason="Harbor needs Python 3.12")
    for file in exported(run, tmp_path, "atif").glob("*/*.json"):
        document = json.loads(file.read_text())
        assert models.Trajectory.model_validate(document).to_json_dict() == document


def test_inspect_opens_its_log(run: Path, tmp_path: Path) -> None:
    log = pytest.importorskip("inspect_ai.log", reason="needs the extra inspect")
    files = sorted(exported(run, tmp_path, "inspect").glob("*.eval"))
    logs = [log.read_eval_log(str(f)) for f in files]
    assert [f.name for f in files] == ["mine-expert-0.eval", "mine-own_lost-0.eval"]
    assert [x.results.scores[0].metrics["mean"].value for x in logs] == [1.0, 0.0]
    sample = logs[0].samples[0]
    assert sample.messages[0].text == SYSTEM and sample.scores["won"].value == 1.0
    assert log.list_eval_logs(str(tmp_path))


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (["format=messges"], "did you mean 'messages'"),
        (["format=messages", "kind=nobody"], "holds no trajectories of kind 'nobody', only expert, own_lost"),
        (["format=preferences", "kind=expert"], "holds no preference pairs"),
        (["kind=expert"], "kind=... is for the other formats"),
    ],
)
def test_a_mistake_is_one_line(args: list[str], line: str, run: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", f"run={run}", f"to={tmp_path / 'x'}", *args]) in (2, 3)
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("steca: ")]
    assert line in said and not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("form", ["messages", "minari", "atif", "inspect"])
def test_an_empty_run_is_one_line(form: str, tmp_path: Path, capsys) -> None:
    folder = make_run(tmp_path / "empty", empty=True)
    assert main(["export", f"run={folder}", f"format={form}"]) == 3
    assert "holds no trajectories to export" in capsys.readouterr().err


def test_empty_tables_keep_their_columns(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra llm")
    import pyarrow.parquet as pq

    folder = make_run(tmp_path / "empty", empty=True)
    assert main(["export", f"run={folder}"]) == 0
    table = folder / "export" / "trajectories.parquet"
    assert "payload" in datasets.Dataset(pq.read_table(table)).column_names
    assert list(datasets.load_dataset("parquet", data_files=str(table), split="train", streaming=True)) == []


def test_the_mask_follows_the_steps(run: Path) -> None:
    data = RunData(run, "expert")
    messages, train = conversation(next(data.rows()).trajectory, data.prompt)
    assert len(messages) == len(train) and sum(train) == 3
    assert RunFolder(run).name == "mine"


@pytest.mark.slow
def test_the_program_of_the_page_runs_and_is_short(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the extra llm")
    page = Path(__file__).resolve().parents[3] / "docs" / "interop" / "export.md"
    (program,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(program.strip().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-c", program, str(run)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "cache")},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "6 turns; Thought: I go" in done.stdout
