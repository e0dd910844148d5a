"""Settings of detection and calibration: ours, and both readings of the reference.

Knows names and ranges. Knows no algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown

TieRule = Literal["kept", "deviated"]
SameAction = Literal["exact", "encoder", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What counts as a deviation, and how it is explored."""

    delta: float = 0.0
    """deviated where r_s(s_t, a_hat_t) - r_s(s_{t-1}, a_{t-1}) < delta"""
    tie_rule: TieRule = "kept"
    """what equality is: ``kept`` reads the rule as ``<`` (paper), ``deviated`` as ``<=`` (the authors'
    code)"""
    undecided_rule: Literal["kept", "mean"] = "kept"
    """a comparison whose samples ran out: not calibrated, or judged by its means; counted either way"""
    skip_first_steps: int = 0
    """expert steps at the beginning at which the agent is not asked (paper 1: there is no step before; code
    2)"""
    require_failure: bool = True
    """the agent's own way on must fail; where it wins, the step is kept without sampling"""
    same_action: SameAction = "exact"
    """when an action is the expert's: equal up to case and blanks; or cosine of the encodings at the
    threshold or above; or never"""
    same_action_cosine: float = 0.95
    """threshold of ``same_action="encoder"``"""
    first_deviation_only: bool = True
    """stop at a trajectory's first deviation (paper)"""
    value_every_step: bool = False
    """estimate the step rewards of every step, also where the agent repeats the expert and behind the first
    deviation (the reference; costs most of its samples)"""
    explore_temperature: float = 0.0
    """of the agent's exploring turns and of its own way on"""
    max_steps: int = 40
    """agent turns of the agent's own way on"""
    max_new_tokens: int = 64
    """tokens per turn, everywhere"""
    max_retries: int = 2
    """episodes that break (a crashed world, not a lost one) are played again this often"""
    round: int = 0
    """of an iterated calibration; kept with every calibration and part of its seeds"""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name, known in (
            ("tie_rule", get_args(TieRule)),
            ("undecided_rule", ("kept", "mean")),
            ("same_action", get_args(SameAction)),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(explain_unknown(name, str(getattr(self, name)), known))
        if not -1 < self.delta < 1:
            raise ConfigError(f"delta must lie in (-1, 1), got {self.delta}")
        if not 0 < self.same_action_cosine <= 1:
            raise ConfigError(f"same_action_cosine must lie in (0, 1], got {self.same_action_cosine}")
        for name, least in (
            ("skip_first_steps", 0),
            ("max_retries", 0),
            ("max_steps", 1),
            ("max_new_tokens", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.explore_temperature < 0:
            raise ConfigError(f"explore_temperature must be >= 0, got {self.explore_temperature}")

    @classmethod
    def preset(cls, name: str, **changes: Any) -> CalibrationSettings:
        """Settings of ``default`` (ours), ``paper`` or ``repo`` (the reference's readings), with changes."""
        if name not in _PRESETS:
            raise UnknownNameError(explain_unknown("preset", name, _PRESETS))
        return cls(**{**_PRESETS[name], **changes})


_PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    # The paper has no rule for equal actions; an action that equals the expert's cannot be corrected to it.
    "paper": {
        "tie_rule": "kept",
        "skip_first_steps": 1,
        "require_failure": False,
        "same_action": "exact",
        "value_every_step": True,
    },
    "repo": {
        "tie_rule": "deviated",
        "skip_first_steps": 2,
        "require_failure": True,
        "same_action": "encoder",
        "same_action_cosine": 0.95,
        "value_every_step": True,
    },
}
