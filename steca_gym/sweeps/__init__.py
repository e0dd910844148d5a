"""Sweeps under Hydra: each job's outcome is kept, a job that fails or dies stops no other, and none hides.

The sweepers and the launcher here are Hydra plugins. They are registered by ``register``, not found by scanning
``hydra_plugins``, so that importing this package is all it takes and optional engines stay optional.
"""

from steca_gym.sweeps.outcomes import JobOutcome, end_with_parent, failure_lines, take_outcomes
from steca_gym.sweeps.plugins import register

__all__ = ["JobOutcome", "end_with_parent", "failure_lines", "register", "take_outcomes"]
