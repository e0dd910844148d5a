"""A person at the terminal as an agent: reads the observation, and types the next action."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from steca_gym.agent import (
    MAX_TURN_CHARS,
    Message,
    Need,
    PlayerLeft,
    Turn,
    TurnFormat,
    TurnRequest,
    find_turn_format,
)
from steca_gym.errors import AgentError, ConfigError
from steca_gym.reports.text import one_line, print_text, visible

PROMPT = "> "
_MORE = "... "
_QUIT = ("quit", "exit")
_MAX_NAMED = 8
"""matching actions that an ambiguous prefix is answered with"""

HELP = """\
Type an action: its number, the beginning of one (if only one action begins like it), or the whole text.
  think: TEXT     your reason for the next action, kept with it
  =TEXT           send TEXT exactly as it is; a line that ends with \\ goes on in the next one
  :list [WORD]    list the possible actions (those that contain WORD)
  :skip           leave this task, go to the next one
  quit            (or exit, Ctrl-D) end; what was played is kept
  ?               this help"""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a typed line means."""

    action: str | None
    """None: it is not clear, see ``answer``"""
    answer: str = ""
    """what to tell the person"""


def choose(typed: str, actions: Sequence[str]) -> Choice:
    """The action that a line means.

    In this order: an action's whole text (upper and lower case alike), its number from 1, the beginning of exactly one
    action, and otherwise the line as it is. ``=`` in front sends the rest unchanged.

    Args:
        typed: the line, without blanks around it.
        actions: the possible actions, in the order in which they are numbered; empty where the world lists none.
    """
    if typed in actions:
        return Choice(typed)
    if typed.startswith("="):
        return Choice(typed[1:])
    key = _key(typed)
    same = [a for a in actions if _key(a) == key]
    if len(same) == 1:
        return Choice(same[0])
    if actions and typed.isascii() and typed.isdigit():
        if len(typed) <= 9 and 1 <= int(typed) <= len(actions):
            return Choice(actions[int(typed) - 1])
        return Choice(None, f"There is no action {typed[:20]}: type a number from 1 to {len(actions)}.")
    begun = [(number, a) for number, a in enumerate(actions, start=1) if _key(a).startswith(key)]
    if len(begun) == 1:
        return Choice(begun[0][1])
    if begun:
        named = ", ".join(f"{number} {one_line(a, 60)}" for number, a in begun[:_MAX_NAMED])
        more = f" and {len(begun) - _MAX_NAMED} more" if len(begun) > _MAX_NAMED else ""
        return Choice(
            None, f"{len(begun)} actions begin like it: {named}{more}. Type more, a number, or ={visible(typed, 60)}"
        )
    return Choice(typed)


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


class HumanAgent:
    """Shows each observation and the possible actions, and reads the next action from the terminal.

    Episodes are played one after the other, however many the collector begins at once. What a world writes is made
    visible before it is shown: a control character is printed as ``⟨U+001B⟩`` and never reaches the terminal.

    Leaving (``quit``, Ctrl-D, Ctrl-C) raises ``PlayerLeft``; ``:skip`` fails the episode with an AgentError.

    Args:
        player: who plays; trajectories call the agent ``human:PLAYER`` (without a player ``human``).
        max_listed: actions that are listed at each turn, >= 1; ``:list`` shows all.
        turn_format: how turns are written: "react" (default), "tools", "json", "xml" or ``module:Object``.
        ask: reads one line after printing a prompt, raises EOFError at the end; by default ``input``.
        show: prints a text; by default on the standard output.

    Raises:
        ConfigError: settings that cannot work.
    """

    needs: frozenset[Need] = frozenset({"admissible_actions"})
    is_clairvoyant = False
    is_interactive = True
    """the terminal belongs to the agent: nothing else may draw on it"""

    @staticmethod
    def check_settings(*, max_listed: int = 40, **others: Any) -> None:
        """Raise ConfigError for settings that cannot work."""
        if isinstance(max_listed, bool) or not isinstance(max_listed, int) or max_listed < 1:
            raise ConfigError(f"max_listed must be a whole number >= 1, got {max_listed!r}")

    def __init__(
        self,
        *,
        player: str = "",
        max_listed: int = 40,
        turn_format: str | TurnFormat | None = None,
        ask: Callable[[str], str] | None = None,
        show: Callable[[str], None] | None = None,
    ) -> None:
        """See the class."""
        self.check_settings(max_listed=max_listed)
        self.name = f"human:{player}" if player else "human"
        self._max_listed = max_listed
        self._format = find_turn_format(turn_format)
        self._ask = ask or _ask
        self._show = show or print_text
        self._waiting: dict[str, TurnRequest] = {}
        self._current: str | None = None
        self._num_shown: dict[str, int] = {}

    # -- Agent -----------------------------------------------------------------------------------------------

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        """Ask for one action per request, in order; raises PlayerLeft, and AgentError for a task that is skipped."""
        return [self._turn(request) for request in requests]

    def submit(self, requests: Sequence[TurnRequest]) -> None:
        """Accept requests."""
        self._waiting.update((request.episode_id, request) for request in requests)

    def poll(self) -> list[tuple[str, Turn | Exception]]:
        """Ask for one action: in the episode that was played last, if it waits, else in the one that waits longest."""
        if not self._waiting:
            return []
        if self._current not in self._waiting:
            self._current = next(iter(self._waiting))
        request = self._waiting.pop(self._current)
        try:
            return [(request.episode_id, self._turn(request))]
        except AgentError as error:
            return [(request.episode_id, error)]

    def release(self, episode_ids: Iterable[str]) -> None:
        """Forget episodes."""
        for episode_id in episode_ids:
            self._num_shown.pop(episode_id, None)
            self._waiting.pop(episode_id, None)

    # -- one turn --------------------------------------------------------------------------------------------

    def _turn(self, request: TurnRequest) -> Turn:
        self._show_news(request)
        actions = request.admissible_actions or ()
        self._list(actions, "")
        thought = ""
        while True:
            typed = self._read(actions)
            word, _, rest = typed.partition(" ")
            if typed in actions:  # before any command of the same name
                return self._written(thought, typed)
            if typed in ("", "?", ":help"):
                self._show(HELP if typed else "Type an action, ? for help, or quit.")
            elif typed in _QUIT or typed.removeprefix(":") in _QUIT:
                raise PlayerLeft(f"{self.name} left the game")
            elif typed == ":skip":
                raise AgentError(f"{self.name} skipped the task")
            elif word == ":list":
                self._list(actions, rest.strip(), everything=True)
            elif typed.casefold().startswith("think:"):
                thought = typed[len("think:") :].strip()
            else:
                choice = choose(typed, actions)
                if choice.action is None:
                    self._show(choice.answer)
                elif len(turn := self._format.render(thought, choice.action)) > MAX_TURN_CHARS:
                    self._show(f"That is too long: {len(turn)} characters, at most {MAX_TURN_CHARS} are read.")
                else:
                    return Turn(text=turn)

    def _written(self, thought: str, action: str) -> Turn:
        return Turn(text=self._format.render(thought, action))

    def _read(self, actions: Sequence[str]) -> str:
        """One line (or several, joined), without blanks around it; raises PlayerLeft."""
        lines: list[str] = []
        with _completion(actions):
            while True:
                try:
                    line = self._ask(_MORE if lines else PROMPT)
                except EOFError:
                    raise PlayerLeft(f"{self.name} left the game") from None
                except KeyboardInterrupt:
                    raise PlayerLeft(f"{self.name} interrupted the game", interrupted=True) from None
                except UnicodeDecodeError:
                    self._show("That is not text in this terminal's encoding; type it again.")
                    lines.clear()
                    continue
                # Bytes that are no text arrive as halves of pairs, which no tokenizer accepts.
                line = line.encode("utf-8", "replace").decode("utf-8")
                lines.append(line.removesuffix("\\"))
                if not line.endswith("\\"):
                    return "\n".join(lines).strip()

    # -- what is shown ---------------------------------------------------------------------------------------

    def _show_news(self, request: TurnRequest) -> None:
        """Show what was said since the last turn; at first everything from the first observation on."""
        messages = request.messages
        first = max(len(messages) - 1 - 2 * request.turn, 0)  # 2t messages precede turn t, whatever the prompt holds
        start = self._num_shown.get(request.episode_id, first)
        for message in messages[start:]:
            self._show_message(message)
        self._num_shown[request.episode_id] = len(messages) + 1  # what the person types needs no repetition

    def _show_message(self, message: Message) -> None:
        if message.role != "assistant":
            self._show(f"\n{visible(message.content)}")
            return
        parsed = self._format.parse(message.content)
        if parsed.thought:
            self._show(f"{PROMPT}think: {visible(parsed.thought)}")
        self._show(f"{PROMPT}{visible(parsed.action if parsed.action is not None else message.content)}")

    def _list(self, actions: Sequence[str], word: str, *, everything: bool = False) -> None:
        if not actions:
            self._show("(this world lists no actions; type one, ? for help)" if everything or word else "")
            return
        numbered = [(n, a) for n, a in enumerate(actions, start=1) if word.casefold() in a.casefold()]
        shown = numbered if everything else numbered[: self._max_listed]
        width = len(str(len(actions)))
        self._show("\n".join(["", *_columns([f"{n:>{width}} {one_line(a, 70)}" for n, a in shown])]))
        if len(shown) < len(numbered):
            self._show(f"... {len(numbered) - len(shown)} more: :list, or :list WORD")
        if not numbered:
            self._show(f"No action contains {visible(word, 60)!r}.")


def _columns(cells: Sequence[str]) -> list[str]:
    """Cells in as many columns as the terminal has room for, down and then across."""
    if not cells:
        return []
    widest = max(map(len, cells)) + 3
    num_columns = max(1, min(len(cells), (shutil.get_terminal_size().columns - 1) // widest))
    num_rows = -(-len(cells) // num_columns)
    rows = (cells[row::num_rows] for row in range(num_rows))
    return ["".join(cell.ljust(widest) for cell in row).rstrip() for row in rows]


def _ask(prompt: str) -> str:
    return input(prompt)


@contextlib.contextmanager
def _completion(actions: Sequence[str]) -> Iterator[None]:
    """Let the Tab key complete actions, where the terminal can."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    offered = [a for a in actions if a.isprintable()]
    before, delimiters = readline.get_completer(), readline.get_completer_delims()

    def complete(begun: str, index: int) -> str | None:
        found = [a for a in offered if a.casefold().startswith(begun.casefold())]
        return found[index] if index < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")  # an action is completed as a whole
    readline.parse_and_bind("tab: complete")
    try:
        yield
    finally:
        readline.set_completer(before)
        readline.set_completer_delims(delimiters)
