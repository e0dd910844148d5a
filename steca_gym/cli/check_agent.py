"""`steca check-agent NAME [key=value ...]`: prove that an agent keeps the contract.

  steca check-agent random                                  an agent of the configuration (agent=...)
  steca check-agent transformers agent.model=PATH
  steca check-agent my_module:MyAgent agent.engine.key=3    one of your own, with its keyword arguments

Exit code 3 where a check failed. The kit cannot see whether the answers are any good.
"""

from __future__ import annotations

from pathlib import Path

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError


def main(args: list[str]) -> int:
    """Run the command."""
    from rich.console import Console

    from steca_gym.agent import Agent
    from steca_gym.runs import RunContext
    from steca_gym.runs.context import read_config
    from steca_gym.runs.view import View
    from steca_gym.testing import check_agent

    folders = config_dirs(args)
    plain = without_config_dirs(args)
    if not plain or "=" in plain[0] or plain[0].startswith("-"):
        raise ConfigError("check-agent needs an agent first, e.g. `steca check-agent random`; see --help")
    name, overrides = plain[0], [f"agent={plain[0]}", "method=none", *plain[1:]]
    explain_overrides([*overrides, *(f"--config-dir={d}" for d in folders)])
    config, _ = read_config(compose(overrides, folders))
    if config.agent.build is not None and config.agent.model is None:
        raise ConfigError(f"agent={name} is trained before it acts; check a model: transformers agent.model=PATH")
    model = Path(config.agent.model) if config.agent.model is not None else None

    def make() -> Agent:
        return RunContext(config, Path(".")).agent(model)

    make()  # settings that cannot work are one line, not a failed check
    console = Console()
    with View().working(f"checking {name}") as on_check:
        report = check_agent(make, title=name, on_check=on_check)
    console.print(report.table())
    num_failed = len(report.failed)
    console.print(f"{num_failed} of {len(report.results)} checks failed" if num_failed else "conforms")
    return 0 if report.ok else 3
