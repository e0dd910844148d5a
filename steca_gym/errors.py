"""The errors that a user can meet. All derive from ``StecaError``; each message is one line: expected, got, what to do.

The command line maps the classes to exit codes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from steca_gym.redaction import redact

MAX_ERROR_CHARS = 500
MAX_MESSAGE_CHARS = 2000


class StecaError(Exception):
    """Root of every error that this package raises on purpose.

    Secrets are removed from its message, and a message that quotes something endless is cut in its middle.
    """

    def __init__(self, *args: object) -> None:
        """Keep the message."""
        super().__init__(*(_message(a) if isinstance(a, str) else a for a in args))


class ConfigError(StecaError):
    """A setting, or a combination of settings, that cannot work."""


class UnknownNameError(ConfigError):
    """A look-up by name that found nothing; the message names the nearest known one."""


class DataError(StecaError):
    """Input data (games, trajectories, embeddings) that is missing or malformed."""


class WorldError(StecaError):
    """A world that broke its contract, or that was used outside of it."""


class ReplayMismatchError(WorldError):
    """A replayed prefix that did not give the recorded observations."""


class AgentError(StecaError):
    """An agent that could not produce a turn, or produced something that is not one."""


class CheckpointError(StecaError):
    """A model folder that cannot be used here (no chat template, another environment, unreadable)."""


class TrainingError(StecaError):
    """Training that cannot continue (NaN loss, nothing to train on)."""


class StorageError(StecaError):
    """A run folder or buffer that cannot be read or written (disk full, locked, foreign schema)."""


class ConflictError(StecaError):
    """Somebody else has changed what was about to be changed."""


class ReviewError(StecaError):
    """Training that waits for decisions of people (``review.mode``)."""


class ContaminationError(StecaError):
    """Games that fed calibration or training were asked for in an evaluation."""


def one_line(error: BaseException) -> str:
    """Return an exception's class and text on one line of at most 500 characters, as trajectories keep it.

    Secrets are removed from it, see ``redaction``.
    """
    return f"{type(error).__name__}: {redact(' '.join(_text(error).split()))}"[:MAX_ERROR_CHARS]


def _message(text: str) -> str:
    if len(text) > MAX_MESSAGE_CHARS:
        head, tail = MAX_MESSAGE_CHARS * 2 // 3, MAX_MESSAGE_CHARS // 4
        # Redacted before it is cut: half a secret would not be found.
        text = redact(text[: 10 * MAX_MESSAGE_CHARS]) + redact(
            text[10 * MAX_MESSAGE_CHARS :][-10 * MAX_MESSAGE_CHARS :]
        )
        return text if len(text) <= MAX_MESSAGE_CHARS else f"{text[:head]} [...] {text[-tail:]}"
    return redact(text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception of the user's whose own __str__ fails
        return "(its text cannot be shown)"


@contextlib.contextmanager
def foreign_errors(what: str, kind: type[StecaError] = WorldError) -> Iterator[None]:
    """Turn whatever code of the user's raises in the block, ``sys.exit`` included, into one line.

    Errors of this package and Ctrl-C pass unchanged.

    >>> with foreign_errors("task_ids() of world 'lamp'"):
    ...     ids = world.task_ids("train")

    Args:
        what: what was called.
        kind: the class that is raised instead.
    """
    try:
        yield
    except (StecaError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise kind(f"{what} failed: {one_line(error)}") from error


def shown(value: object, max_chars: int = 80) -> str:
    """A value in a message: its ``repr``, short and on one line, also where it is nested without end."""
    try:
        text = repr(value)
    except Exception:  # nested too deeply, a whole number of thousands of digits, or a __repr__ that fails
        text = f"<{type(value).__name__}>"
    return text if len(text) <= max_chars else f"{text[:max_chars]}... ({type(value).__name__})"


def escape_markup(text: str) -> str:
    """Escape a text so that rich prints it as it is: ``[/INST]`` in an error is not markup."""
    from rich.markup import escape

    return escape(text)
