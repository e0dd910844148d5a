"""``steca report``: where the file goes, other forms, and what it says about bad arguments."""

import pytest

from steca_gym.cli import main
from steca_gym.reports.base import Page
from tests.reports.runs import make_run


class Names:
    """A form of one's own."""

    def render(self, runs):
        return Page(text=" ".join(run.name for run in runs), suffix=".txt")


def test_the_file_goes_into_the_run(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    assert (run / "report.html").read_text("utf-8").startswith("<!doctype html>")


def test_several_runs_and_roots_each_once(tmp_path):
    make_run(tmp_path / "all" / "a")
    make_run(tmp_path / "all" / "b", method="sft")
    target = tmp_path / "out.txt"
    form = "form=tests.cli.test_report:Names"
    assert main(["report", str(tmp_path / "all"), str(tmp_path / "all" / "a"), f"to={target}", form]) == 0
    assert target.read_text() == "a b"


@pytest.mark.parametrize("command", ["report", "table"])
@pytest.mark.parametrize(("file", "text"), [("run.json", "{"), ("run.json", "[]"), ("evaluation.json", '{"games": 5}')])
def test_a_damaged_run_below_a_root_is_named_and_left_out(tmp_path, capsys, command, file, text):
    root = tmp_path / "all"
    make_run(root / "whole", num=1)
    (make_run(root / "damaged", num=1, seed=1) / file).write_text(text)
    to = [f"to={tmp_path / 'page.html'}"] if command == "report" else []
    assert main([command, str(root), *to]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("steca: left out: ") and str(root / "damaged") in line
    assert main([command, str(root / "damaged"), *to]) == 3  # asked for by its own name, it is refused


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "report needs a run"),
        (["{run}", "to={run}"], 2, "is a folder"),
        (["{run}", "to="], 2, "is empty"),
        (["{run}", "to={run}/no/such/page.html"], 3, "there is no folder"),
        (["{run}", "form=htlm"], 2, "did you mean 'html'"),
        (["{run}", "form=pathlib:Path"], 2, "expected a class with render(runs)"),
        (["{run}", "too=x"], 2, "did you mean 'to'"),
        (["{run}/none"], 3, "no runs in"),
    ],
)
def test_bad_arguments_get_one_line(tmp_path, capsys, args, code, said):
    run = make_run(tmp_path / "run", num=1)
    assert main(["report", *(a.format(run=run) for a in args)]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (run / "no").exists()
