"""The errors that a user can meet: one root, one line a class.

Each message carries what was expected, what came and what to do. Knows no exit codes: the command line maps
classes to them.
"""


class StecaError(Exception):
    """Root of every error that this package raises on purpose."""


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
    """Training that cannot go on (NaN loss, nothing to train on)."""


class StorageError(StecaError):
    """A run folder or buffer that cannot be read or written (disk full, locked, foreign schema)."""


class ContaminationError(StecaError):
    """Games that fed calibration or training were asked for in an evaluation."""
