"""`steca evaluate ...`: evaluate what a run has trained, or any model, agent or endpoint; never trains.

  steca evaluate run=runs/mine                           the model of a run
  steca evaluate run=runs/mine env.num_eval_tasks=500    another evaluation of the same model
  steca evaluate model=PATH_OR_NAME env=household        a model folder, checkpoint or name, zero-shot
  steca evaluate agent=random env=household              an agent without a model, or an endpoint (agent=openai ...)
  steca evaluate model=PATH env=household panel=runs/mine/panel.json      the games of another evaluation, or a refusal
  steca evaluate model=PATH env=alfworld panel=alfworld_seen_50           rules that papers evaluate by

Takes the overrides of `steca run`. An evaluation with equal settings is done once; its table is printed again.
"""

from __future__ import annotations

from pathlib import Path

from steca_gym.cli.jobs import run_jobs
from steca_gym.errors import ConfigError
from steca_gym.evaluation import EvaluationReport
from steca_gym.runs import Runner
from steca_gym.runs.folder import is_run

OWN_HELP = True


def main(args: list[str]) -> int:
    """Run the command."""
    extra: dict[str, str] = {}
    kept: list[str] = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key == "model":
            if not value:
                raise ConfigError("model= names nothing; give a model's folder or name, e.g. model=runs/mine/model")
            extra["agent.model"] = value
        else:
            kept.append(arg)
    given = {a.partition("=")[0] for a in kept}
    if extra and "agent" not in given:
        kept.insert(0, "agent=transformers")
    run_dir = next((a.partition("=")[2] for a in kept if a.startswith("run_dir=")), None)
    of_a_run = "run" in given or "method" in given or (run_dir is not None and is_run(Path(run_dir)))
    if not of_a_run:
        kept.insert(0, "method=none")
    if run_dir is not None and is_run(Path(run_dir)) and "run" not in given:
        kept = [f"run={run_dir}" if a.startswith("run_dir=") else a for a in kept]
    return run_jobs("evaluate", kept, evaluate, help_text=__doc__ or "", extra=extra)


def evaluate(runner: Runner) -> EvaluationReport:
    """Evaluate; raises ConfigError where stages that train are not done."""
    open_stages = [n for n in runner.unfinished_stages() if n != "demonstrations"]
    if open_stages and runner.config.agent.trainable:
        raise ConfigError(
            f"{str(runner.folder)!r} is not trained: the stage {open_stages[0]!r} is not done, and steca evaluate "
            f"never trains; finish it (steca run run={runner.folder}), or evaluate a model: steca evaluate model=PATH"
        )
    return runner.evaluate_only()
