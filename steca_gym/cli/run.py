"""`steca run [-m] [group=choice] [key=value]`: a whole run: the stages of a method, then the evaluation.

  steca run env=household method=steca seed=0
  steca run -m method=sft,rft,steca seed=0,1,2     a sweep; stages with equal settings are shared
  steca run run=PATH [until=STAGE]                 continue with a run
  steca run method=my_module:MyMethod --config-dir DIR

until=STAGE ends after a stage; `until=?` lists the stages of the method.
"""

from __future__ import annotations

from steca_gym.cli.jobs import run_jobs
from steca_gym.evaluation import EvaluationReport
from steca_gym.runs import Runner

OWN_HELP = True


def main(args: list[str]) -> int:
    """Run the command."""
    return play("run", args, help_text=__doc__ or "")


def play(command: str, args: list[str], *, help_text: str, until: str | None = None) -> int:
    """Play the stages up to one that ``until=`` or the command names."""
    kept: list[str] = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key in ("until", "phase"):
            until = value
        else:
            kept.append(arg)

    def job(runner: Runner) -> EvaluationReport | None:
        if until == "?":
            print("\n".join(runner.stage_names()))
            return None
        return runner.play(until=until if until != LAST_TRAINING else last_training(runner))

    return run_jobs(command, kept, job, help_text=help_text)


LAST_TRAINING = "the last stage that trains"


def last_training(runner: Runner) -> str:
    """The last stage of the method before the evaluation."""
    return runner.stage_names()[-2] if len(runner.stage_names()) > 1 else runner.stage_names()[-1]
