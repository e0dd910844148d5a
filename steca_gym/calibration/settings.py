"""Settings of detection and correction. The defaults are those of ``conf/preset/default.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import explain_unknown

if TYPE_CHECKING:
    from steca_gym.step_rewards.settings import StepRewardSettings

TieRule = Literal["kept", "deviated"]
UndecidedRule = Literal["kept", "mean"]
SameAction = Literal["exact", "encoder", "none"]
CorrectionSource = Literal["expert", "own"]
ExploredSet = Literal["continuations", "episodes"]
DETECTORS = ("compare", "every", "bisect", "first_difference", "random")
"""names of the detectors that come with the package"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSettings:
    """What counts as a deviation, how it is corrected, and what is collected besides.

    Raises:
        ConfigError: a value is out of range.
        UnknownNameError: an unknown rule; the message names the nearest one.
    """

    detector: str = "compare"
    """how deviations are found: ``compare`` (STeCa: the first step whose value falls), ``every`` (the authors' code:
    every step whose value falls), ``bisect`` (the first irrecoverable step of the agent's own episode), ``random`` and
    ``first_difference`` (ablations without values), or ``module:Object`` with the ``Detector`` protocol"""
    correction: CorrectionSource = "expert"
    """where the right action comes from: ``expert``: the demonstration, repaired by an expert where it no longer fits;
    ``own``: the agent's own alternatives, the best one that continuations verify"""
    delta: float = 0.0
    """threshold, in (-1, 1): deviated where r_s(s_t, a_hat_t) - r_s(s_{t-1}, a_{t-1}) < delta"""
    tie_rule: TieRule = "kept"
    """what equal values are: ``kept`` reads the rule as ``<`` (paper), ``deviated`` as ``<=`` (the authors' code)"""
    undecided_rule: UndecidedRule = "kept"
    """a comparison whose samples ran out: ``kept``, or judged by its ``mean`` values; counted either way"""
    skip_first_steps: int = 0
    """expert steps at the start at which the agent is not asked, >= 0 (paper: 1, no step comes before; authors' code:
    2)"""
    require_failure: bool = True
    """only steps from which the agent's own greedy rollout fails can deviate; where it wins, the step is kept without
    sampling"""
    detect_fatal: bool = True
    """call an action *fatal* that ends the episode lost or leaves the task unwinnable; decided without sampling where
    the world can tell"""
    same_action: SameAction = "exact"
    """when an action is the expert's: equal up to case and blanks (``exact``); by the cosine of the two encodings
    (``encoder``); never (``none``)"""
    same_action_cosine: float = 0.95
    """threshold of ``same_action=encoder``, in (0, 1]; it belongs to one encoder (0.95: BERT's first token)"""
    value_every_step: bool = False
    """estimate the step rewards of every step, also where the agent repeats the expert and after the first deviation
    (the reference; most of its samples go there)"""
    value_expert_step: bool = True
    """estimate r_s(s_t, a_t) at a deviation, which D_s needs; False: D_s takes only steps whose values are known
    anyway"""
    explored: ExploredSet = "continuations"
    """where D_e comes from: won ``continuations`` after an action of the agent's own, or whole ``episodes`` that the
    agent wins from the start (the authors' code)"""
    failed_demonstrations: bool = False
    """add the whole demonstration of every task that the agent fails from the start to D_s (the authors' code)"""
    num_alternatives: int = 4
    """correction=own: alternatives sampled at a deviation, >= 1"""
    num_verifications: int = 4
    """correction=own: continuations that verify each alternative, >= 1"""
    num_probes: int = 3
    """detector=bisect: continuations for each probed state, >= 1; a state counts as recoverable if one of them wins"""
    first_repetition: bool = True
    """detector=bisect: where the step found repeats the action before it in vain (same action, same observation),
    correct the first of these repetitions; False: the last one, which is the first irrecoverable step"""
    explore_temperature: float = 0.0
    """sampling temperature of the agent's exploring turns and of its greedy rollouts, >= 0"""
    max_steps: int = 40
    """agent turns of a greedy rollout, >= 1"""
    max_new_tokens: int = 64
    """tokens per turn, everywhere, >= 1; comes from the agent's settings in a run"""
    max_retries: int = 2
    """times that an episode which broke (an error, not a loss) is played again, >= 0"""
    round: int = 0
    """number of the calibration round, from 0; stored with every calibration and part of its seeds"""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        for name, known in (
            ("correction", get_args(CorrectionSource)),
            ("tie_rule", get_args(TieRule)),
            ("undecided_rule", get_args(UndecidedRule)),
            ("same_action", get_args(SameAction)),
            ("explored", get_args(ExploredSet)),
        ):
            if getattr(self, name) not in known:
                raise UnknownNameError(explain_unknown(name, str(getattr(self, name)), known))
        if ":" not in self.detector and self.detector not in DETECTORS:
            raise UnknownNameError(explain_unknown("detector", self.detector, DETECTORS) + "; or module:Class")
        if not -1 < self.delta < 1:
            raise ConfigError(f"delta must lie in (-1, 1), got {self.delta}")
        if not 0 < self.same_action_cosine <= 1:
            raise ConfigError(f"same_action_cosine must lie in (0, 1], got {self.same_action_cosine}")
        for name, least in (
            ("skip_first_steps", 0),
            ("max_retries", 0),
            ("round", 0),
            ("max_steps", 1),
            ("max_new_tokens", 1),
            ("num_alternatives", 1),
            ("num_verifications", 1),
            ("num_probes", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not self.explore_temperature >= 0:
            raise ConfigError(f"explore_temperature must be >= 0, got {self.explore_temperature}")


def check_together(calibration: CalibrationSettings, step_rewards: StepRewardSettings) -> None:
    """Refuse settings that are sound alone and wrong together; raises ConfigError.

    With ``require_failure`` only steps whose greedy rollout failed are compared. Counting that rollout as an outcome
    would give every compared step a first loss and nearly quadruple the false alarms.
    """
    if calibration.require_failure and step_rewards.count_greedy_rollout:
        raise ConfigError(
            "count_greedy_rollout=true together with require_failure=true counts a rollout that is known to have "
            "failed (false alarms rise from 0.04 to 0.16); set one of them to false"
        )
