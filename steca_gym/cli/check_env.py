"""`steca check-env ID [key=value ...]`: prove that an environment keeps the contract.

  steca check-env household env.kwargs.num_objects=4    an environment of the configuration (env=...)
  steca check-env my_module:me/World-v0 size=3          a Gymnasium id, with its keyword arguments

Exit code 3 where a check failed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from steca_gym.cli.composing import compose, explain_overrides
from steca_gym.cli.options import config_dirs, without_config_dirs
from steca_gym.errors import ConfigError, foreign_errors


def main(args: list[str]) -> int:
    """Run the command."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from steca_gym.runs.context import make_env
    from steca_gym.runs.view import View
    from steca_gym.testing import check_text_env

    folders = config_dirs(args)
    plain = without_config_dirs(args)
    if not plain or "=" in plain[0] or plain[0].startswith("-"):
        raise ConfigError("check-env needs an id first, e.g. `steca check-env household`; see `steca check-env --help`")
    name, overrides = plain[0], plain[1:]
    kwargs: dict[str, Any]
    if "/" in name or ":" in name or "-v" in name:
        kwargs = keyword_arguments(overrides)
        split, env_id = kwargs.pop("split", None), name
    else:
        explain_overrides([f"env={name}", *overrides, *(f"--config-dir={d}" for d in folders)])
        env = OmegaConf.to_container(compose([f"env={name}", *overrides], folders).env, resolve=True)
        assert isinstance(env, dict)
        env_id, kwargs, split = env["id"], env["kwargs"], env["train_split"]
    make = functools.partial(make_env, env_id, kwargs, split or "train")
    with foreign_errors(f"making environment {env_id!r}"):
        make().close()  # settings that cannot work are one line, not a failed check
    console = Console()
    with View().working(f"checking {env_id}") as on_check:
        report = check_text_env(make, title=f"{env_id} ({split or 'train'})", on_check=on_check)
    console.print(report.table())
    num_failed = len(report.failed)
    console.print(f"{num_failed} of {len(report.results)} checks failed" if num_failed else "conforms")
    return 0 if report.ok else 3


def keyword_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """``key=value`` texts as keyword arguments; raises ConfigError for what is not one."""
    from omegaconf import OmegaConf

    for text in texts:
        if not text.partition("=")[0].replace(".", "_").isidentifier() or "=" not in text:
            raise ConfigError(f"check-env takes key=value arguments of the environment, got {text!r}")
    try:
        loaded = OmegaConf.to_container(OmegaConf.from_dotlist(list(texts)))
    except Exception as error:  # a YAML parser's or OmegaConf's own
        raise ConfigError(f"cannot read {' '.join(texts)}: {' '.join(str(error).split())}") from error
    assert isinstance(loaded, dict)
    return {str(k): v for k, v in loaded.items()}
