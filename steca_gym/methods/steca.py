"""STeCa: step-level trajectory calibration (Wang et al. 2025, arXiv 2502.14276), one round or several."""

from __future__ import annotations

from pathlib import Path

from steca_gym import phases
from steca_gym.run import Run


def steca(run: Run) -> Path | None:
    """Warm up; explore, detect deviations, calibrate and execute; train on D_c, D_e and D_s; repeat.

    The paper has one round; ``method.num_rounds`` lets the trained agent explore again.
    """
    experts = phases.demonstrations(run)
    model = phases.warm_up(run, experts)
    for round_index in range(int(run.settings["method"]["num_rounds"])):
        phases.calibration(run, model, experts, round_index)
        samples = phases.reinforced_samples(run, experts, round_index)
        model = phases.reinforce(run, model, samples, round_index)
    return model
