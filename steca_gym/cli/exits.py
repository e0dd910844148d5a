"""Exit codes."""

from __future__ import annotations

from steca_gym import errors

EXIT_CODES: tuple[tuple[type[errors.StecaError], int], ...] = (
    (errors.ConfigError, 2),
    (errors.DataError, 3),
    (errors.ContaminationError, 3),
    (errors.WorldError, 3),
    (errors.AgentError, 4),
    (errors.CheckpointError, 4),
    (errors.TrainingError, 4),
    (errors.StorageError, 5),
    (errors.ConflictError, 6),
    (errors.ReviewError, 6),
)


def exit_code(error: errors.StecaError) -> int:
    """The process's exit code for an error."""
    return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1)
