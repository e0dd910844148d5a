"""Runs, trajectories and calibrations as plain text, for terminals and pipes.

What a world or a model wrote is printed with its escape sequences written out, so that a terminal does not obey them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from steca_gym.errors import UnknownNameError
from steca_gym.registry import explain_unknown
from steca_gym.reports.base import Page
from steca_gym.reports.data import ReportData, report_data
from steca_gym.reports.text import one_line, visible
from steca_gym.reports.trajectories import JSON
from steca_gym.runs.folder import RunFolder


class TextReport:
    """Runs with their stages, then a line for each trajectory."""

    def render(self, runs: Sequence[RunFolder]) -> Page:
        """Make the text; see ``steca_gym.reports.base.Report``."""
        data = report_data(runs)
        lines: list[str] = []
        for run in data.summary["runs"]:
            lines += [*run_lines(run), ""]
        lines.append(f"{len(data.rows)} trajectories")
        lines += [_row(row) for row in data.rows]
        return Page(text="\n".join(lines) + "\n", suffix=".txt")


def trajectory_text(data: ReportData, name: str) -> str:
    """One trajectory, step by step, with its values and calibrations.

    Args:
        data: of the runs.
        name: an id of the list or the beginning of one, or a task's id (its first trajectory).

    Raises:
        UnknownNameError: there is no such trajectory; the line shows the nearest one.
    """
    name = visible(name)
    found = [
        *(i for i, row in enumerate(data.rows) if row["id"] == name or row["task"] == name),
        *(i for i, row in enumerate(data.rows) if row["id"].startswith(name)),
    ]
    if found:
        return "\n".join(_trajectory(data.rows[found[0]], data.details[found[0]])) + "\n"
    raise UnknownNameError(explain_unknown("trajectory", name, [r["task"] for r in data.rows][:1000])[:400])


def run_lines(run: JSON) -> Iterator[str]:
    """A run's stages, result and what to do next."""
    yield f"run {visible(run['name'])}: {run['method']} on {visible(run['env'])}, seed {run['seed']}"
    if run["changed"]:
        yield "  changed: " + one_line(", ".join(f"{key}={value}" for key, value in run["changed"]))
    for stage in run["stages"]:
        state = " (unfinished)" if stage["unfinished"] else ""
        yield (
            f"  {stage['name']:<24} {stage['seconds']:>9.1f} s {stage['tokens']:>12,} tokens "
            f"{stage['env_steps']:>12,} environment steps{state}"
        )
    found = run["evaluation"]
    if found is not None:
        yield (
            f"  success {100 * found['success']:.1f} % ({100 * found['low']:.1f} to {100 * found['high']:.1f}) "
            f"of {found['num_games']} games"
        )
    for advice in run["next"]:
        yield f"  next: {visible(advice)}"


def _row(row: JSON) -> str:
    outcome = "error" if row["error"] else "won" if row["won"] else "lost" if row["won"] is False else "explored"
    where = "" if row["lost"] is None else f"step {row['lost'] + 1} of {row['steps']}: {row['action']}"
    about = f"  [calibration {row['calibration']}]" if row["calibration"] else ""
    return f"{row['id'][:14]:<14}  {outcome:<8}  {row['kind']:<10}  {row['task'][:40]:<24}  {where}{about}".rstrip()


def _trajectory(row: JSON, detail: JSON) -> Iterator[str]:
    yield f"{row['task']}  {visible(row['kind'])}  {row['id']}"
    yield from _indented(detail["goal"])
    yield from _indented(detail["first_observation"])
    values = {value["t"]: value for value in detail["values"]}
    for turn in detail["turns"]:
        yield from turn_lines(row, turn, values.get(turn["t"]))
    if detail["error"]:
        yield f"error: {one_line(detail['error'])}"
    for card in detail["calibrations"]:
        yield ""
        yield from calibration_lines(card)


def turn_lines(row: JSON, turn: JSON, value: JSON | None) -> Iterator[str]:
    """A turn, the world's answer, and what the agent did instead."""
    fatal = value is not None and value["verdict"] == "fatal"
    mark = ("  <- fatal mistake here" if fatal else "  <- went wrong here") if turn["t"] == row["lost"] else ""
    yield f"{turn['t'] + 1:>4}  {one_line(turn['action'])}{mark}"
    yield from _indented(turn["observation"])
    if value is not None and value["verdict"] != "same_action":
        yield f"      agent instead: {one_line(value['agent_action'])} ({value['verdict']}{_fall(value)})"


def kind_of(card: JSON) -> str:
    """The state of a calibration and what kind of mistake it corrects: "accepted, fatal, repaired"."""
    verdict = "" if card["value"] is None else card["value"]["verdict"]
    kinds = [card["status"]]
    kinds += ["fatal"] if "fatal" in (verdict, card["kind"]) else []
    kinds += ["repaired"] if card["repaired"] else []
    return ", ".join([*kinds, *(["edited"] if card["edited_by"] else [])])


def calibration_lines(card: JSON) -> Iterator[str]:
    """A calibration with its reason and decisions."""
    yield f"calibration {visible(card['id'])} at step {card['step'] + 1}: {kind_of(card)}"
    yield f"  wrong       {one_line(card['wrong']['action'])}"
    yield f"  right       {one_line(card['expert_action'])}"
    if card["demonstrated"]:
        yield f"  in its place the demonstration has {one_line(card['demonstrated'])}"
    if card["reflection"]:
        yield f"  reflection  {one_line(card['reflection'], 1000)} ({visible(card['reflection_source'])})"
    if card["reason"]:
        yield f"  reason      {one_line(card['reason'], 1000)}"
    held_back = {"waiting": " (it waits for a decision)", "refused": " (a person refused it)"}
    yield f"  weight      {card['weight']:g}{held_back.get(card['state'], '')}"
    for made in card["decisions"]:
        yield f"  decision    {made['decision']} by {one_line(made['who'])}: {one_line(made['why'])}"


def _fall(value: JSON) -> str:
    before, agent = value["before"], value["agent"]
    if before is None or agent is None:
        return ""
    return "; " + " to ".join(
        f"{100 * e['mean']:.0f} % [{100 * e['low']:.0f}, {100 * e['high']:.0f}]" for e in (before, agent)
    )


def _indented(text: str) -> Iterable[str]:
    return (f"      {line}" for line in visible(text, 2000).split("\n") if line.strip())
