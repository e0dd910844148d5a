"""Runs, trajectories and calibrations in the terminal (Textual): a list, and one trajectory replayed step by step.

What a world or a model wrote is shown with its escape sequences written out, and never read as markup.
"""

from __future__ import annotations

from typing import ClassVar

from steca_gym.errors import ConfigError
from steca_gym.reports.data import ReportData
from steca_gym.reports.plain import calibration_lines, kind_of, run_lines, turn_lines
from steca_gym.reports.text import one_line, visible

try:
    from rich.text import Text
    from textual.app import App, ComposeResult
    from textual.binding import Binding, BindingType
    from textual.containers import Horizontal, VerticalScroll
    from textual.widgets import DataTable, Footer, Header, Input, Static, TabbedContent, TabPane
except ImportError as error:
    raise ConfigError(
        f"the terminal view needs {error.name}, which is not installed; run `pip install 'steca-gym[terminal]'`, or "
        "add --plain"
    ) from error

_COLUMNS = ("outcome", "kind", "task", "lost at", "action", "calibration", "decision")


class InspectApp(App[None]):
    """The view.

    Args:
        data: of the runs, read once.
    """

    TITLE = "steca inspect"
    CSS = """
    #left { width: 45%; }
    #right { width: 55%; border-left: solid $primary; padding: 0 1; }
    #search { display: none; }
    #search.open { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "search", "Search"),
        Binding("left", "step(-1)", "Step back", priority=True),
        Binding("right", "step(1)", "Step", priority=True),
        Binding("d", "deviation", "The mistake"),
        Binding("a", "all_steps", "All steps"),
        Binding("r", "show('runs')", "Runs"),
        Binding("t", "show('trajectories')", "Trajectories"),
        Binding("c", "show('calibrations')", "Calibrations"),
    ]

    def __init__(self, data: ReportData) -> None:
        """See the class."""
        super().__init__()
        self.data = data
        self.chosen = 0
        self.step = 0
        """turns that are shown; at the end, what follows them is shown as well"""
        self.words = ""

    def compose(self) -> ComposeResult:
        """The widgets."""
        yield Header()
        yield Input(placeholder="words of task, action or outcome", id="search")
        with Horizontal():
            with TabbedContent(initial="trajectories", id="left"):
                with TabPane("Runs", id="runs"):
                    text = "\n".join(line for run in self.data.summary["runs"] for line in [*run_lines(run), ""])
                    yield VerticalScroll(Static(Text(text)))
                with TabPane("Trajectories", id="trajectories"):
                    yield DataTable(id="list", cursor_type="row", zebra_stripes=True)
                with TabPane("Calibrations", id="calibrations"):
                    yield DataTable(id="cards", cursor_type="row", zebra_stripes=True)
            yield VerticalScroll(Static(id="detail"), id="right")
        yield Footer()

    def on_mount(self) -> None:
        """Fill the lists."""
        self.query_one("#list", DataTable).add_columns(*_COLUMNS)
        self.query_one("#cards", DataTable).add_columns("status", "step", "wrong", "right", "decision", "task")
        self._fill()
        self.query_one("#list", DataTable).focus()

    def _fill(self) -> None:
        listed, cards = self.query_one("#list", DataTable), self.query_one("#cards", DataTable)
        listed.clear()
        cards.clear()
        words = self.words.casefold().split()
        for index, (row, detail) in enumerate(zip(self.data.rows, self.data.details, strict=True)):
            outcome = "error" if row["error"] else {True: "won", False: "lost"}.get(row["won"], "explored")
            about = (outcome, row["kind"], row["task"], "" if row["lost"] is None else str(row["lost"] + 1))
            cells = (*about, row["action"], row["calibration"], row["decision"])
            if all(word in " ".join(cells).casefold() for word in words):
                listed.add_row(*(Text(one_line(cell, 60)) for cell in cells), key=str(index))
                for number, card in enumerate(detail["calibrations"]):
                    shown = (kind_of(card), str(card["step"] + 1), card["wrong"]["action"], card["expert_action"])
                    line = (*shown, card["decision"], row["task"])
                    cards.add_row(*(Text(one_line(cell, 60)) for cell in line), key=f"{index}/{number}")

    # -- what is chosen -------------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the trajectory under the cursor, whole."""
        shown = {"trajectories": "list", "calibrations": "cards"}.get(self.query_one("#left", TabbedContent).active)
        if event.row_key.value is None or event.data_table.id != shown:
            return
        index, _, _ = event.row_key.value.partition("/")
        self.chosen = int(index)
        self.step = len(self.data.details[self.chosen]["turns"])
        self._show()

    def action_step(self, by: int) -> None:
        """Replay one step more, or one less."""
        if isinstance(self.focused, Input):
            getattr(self.focused, "action_cursor_left" if by < 0 else "action_cursor_right")()
            return
        if self.data.rows:
            self.step = min(len(self.data.details[self.chosen]["turns"]), max(0, self.step + by))
            self._show()

    def action_deviation(self) -> None:
        """Replay up to the step where it went wrong."""
        if self.data.rows and (lost := self.data.rows[self.chosen]["lost"]) is not None:
            self.step = lost + 1
            self._show()

    def action_all_steps(self) -> None:
        """Show all steps."""
        self.action_step(1_000_000)

    def action_show(self, tab: str) -> None:
        """Change to another list."""
        self.query_one("#left", TabbedContent).active = tab

    def action_search(self) -> None:
        """Open the search."""
        field = self.query_one("#search", Input)
        field.add_class("open")
        field.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """List what holds all words."""
        self.words = event.value
        event.input.remove_class("open")
        self._fill()
        self.query_one("#list", DataTable).focus()

    def _show(self) -> None:
        row, detail = self.data.rows[self.chosen], self.data.details[self.chosen]
        turns = detail["turns"]
        text = Text()
        text.append(f"{row['task']}  ({row['kind']})\n", style="bold")
        text.append(visible(f"{detail['goal']}\n{detail['first_observation']}".strip(), 2000) + "\n")
        text.append(f"step {self.step} of {len(turns)}\n\n", style="dim")
        values = {value["t"]: value for value in detail["values"]}
        for turn in turns[: self.step]:
            wrong = turn["t"] == row["lost"]
            lines = "\n".join(turn_lines(row, turn, values.get(turn["t"])))
            text.append(lines + "\n", style="bold red" if wrong else "")
        if self.step == len(turns):
            for card in detail["calibrations"]:
                text.append("\n" + "\n".join(calibration_lines(card)) + "\n", style="green")
            if detail["error"]:
                text.append(f"error: {one_line(detail['error'])}\n", style="red")
        self.query_one("#detail", Static).update(text)
