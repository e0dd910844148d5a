"""`steca diagnose env=... agent=...`: will calibration help here, and what will it cost?

  steca diagnose env=household model=runs/mine/warm-up      an agent after its warm-up
  steca diagnose run=runs/mine                              the agent, world and settings of a run
  steca diagnose env=household agent=random form=json       for a program
  steca diagnose run=runs/mine price=0.6                    with money, per million sampled tokens
  steca diagnose run=runs/mine num_tasks=30                 more probes, narrower intervals

Plays some 50 episodes and a few hundred continuations on training tasks, stores nothing, and prints a verdict with its
reasons, what to change, every measure with its interval, and a forecast of the run's calibration. Takes the overrides
of `steca run`; docs/diagnosis.md explains each line.
"""

from __future__ import annotations

import json
from pathlib import Path

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.jobs import with_stored
from steca_gym.cli.options import without_config_dirs
from steca_gym.errors import ConfigError

_OWN = {"form": "text", "price": "", "num_tasks": "", "model": ""}


def main(args: list[str]) -> int:
    """Run the command."""
    from steca_gym.calibration import CalibrationSettings
    from steca_gym.diagnosis import DiagnosisSettings, diagnose
    from steca_gym.methods.base import make_method
    from steca_gym.methods.steca import STeCa
    from steca_gym.runs.context import RunContext, read_config
    from steca_gym.runs.folder import RunFolder
    from steca_gym.step_rewards import StepRewardSettings

    own = dict(_OWN)
    kept: list[str] = []
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key in own:
            own[key] = value
        else:
            kept.append(arg)
    run = next((a.partition("=")[2] for a in kept if a.startswith("run=")), None)
    if own["form"] not in ("text", "json"):
        raise ConfigError(f"form must be text or json, got {own['form']!r}")
    price = _number("price", own["price"]) if own["price"] else None
    model = Path(own["model"]) if own["model"] else None
    if model is not None:
        kept = [*([] if any(a.startswith("agent=") for a in kept) else ["agent=transformers"]), *kept]
        kept.append(f"++agent.model={model}")
    kept, folders, _ = with_stored(kept)
    if run is not None:
        model = model or RunFolder(run).model()
    overrides = without_config_dirs(kept)
    explain_overrides([*overrides, *(f"--config-dir={d}" for d in folders)])
    config, _ = read_config(compose(overrides, folders))
    if config.agent.trainable and model is None:
        raise ConfigError(
            "diagnose needs an agent that can act: give a model (model=PATH), a run with one (run=PATH), or an agent "
            "without training (agent=random, agent=openai)"
        )
    method = make_method(config.method)
    own_config = getattr(method, "config", None)
    chosen = own_config if isinstance(own_config, STeCa.Config) else STeCa.Config()
    calibration: CalibrationSettings = chosen.calibration
    rewards: StepRewardSettings = chosen.step_rewards
    context = RunContext(config, Path(run) if run else Path(config.runs_root) / "diagnosis")
    ids = context.task_ids(config.env.train_split, config.env.num_train_tasks)
    probes = DiagnosisSettings(
        num_tasks=int(_number("num_tasks", own["num_tasks"])) if own["num_tasks"] else DiagnosisSettings().num_tasks,
        max_new_tokens=config.agent.max_new_tokens,
        seed=config.seed,
    )
    found = diagnose(
        context.make_env,
        context.agent(model),
        context.expert(),
        ids,
        num_experts=chosen.num_experts or len(ids),
        num_rounds=chosen.num_rounds,
        price_per_million_tokens=price,
        settings=probes,
        calibration=calibration,
        step_rewards=rewards,
        prompt=context.prompt,
        num_envs=config.collector.num_envs,
        turn_format=config.agent.turn_format,
        on_progress=lambda what: context.say(f"  {what}"),
    )
    print(json.dumps(found.as_dict(), indent=1) if own["form"] == "json" else "\n".join(found.lines()))
    return 0


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e12:
        raise ConfigError(f"{name} must be a number > 0, got {text!r}")
    return value
