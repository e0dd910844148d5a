"""What a method is: a frozen ``Config`` and a sequence of stages.

A method of your own is one file::

    class BestOfN:
        @dataclass(frozen=True, kw_only=True)
        class Config:
            num_samples: int = 4
            \"\"\"episodes per task\"\"\"

        def __init__(self, config: Config) -> None:
            self.config = config

        def stages(self) -> list[Stage]:
            return [Demonstrations(), WarmUp(), MyStage(self.config), ...]

``steca run method=my_module:BestOfN method.num_samples=8`` plays it; see ``docs/your-own-method.md``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from steca_gym.errors import ConfigError
from steca_gym.methods.context import Context, Record, RunConfig, Stored
from steca_gym.registry import methods
from steca_gym.settings import read_settings


class Stage(ABC):
    """One step of a method: done once, resumed after a kill, shared between runs that depend on the same settings.

    Subclasses set ``name`` and write ``depends_on`` and ``run``. A stage that leaves more behind than its record also
    writes ``adopt``, so that another run can take it over.
    """

    name: str
    """unique in its method; the key of its record, and what ``until=`` may name"""
    title: str = ""
    """one line for a person; ``name`` where it is empty"""

    @abstractmethod
    def depends_on(self, config: RunConfig) -> Mapping[str, Any]:
        """The settings that this stage's result depends on, beyond those of the stages before it.

        Plain data under the names of the configuration, e.g. ``{"agent.warm_up": {...}}``. Two runs whose stages up
        to here depend on equal settings share this stage. What does not change the result (where it runs, how it is
        logged) is left out.
        """

    @abstractmethod
    def run(self, context: Context, record: Record) -> None:
        """Do the work and put what is worth knowing into the record.

        The work is idempotent: what the context's buffer and folder hold already is not done again. A stage that
        trains puts the model's folder, relative to the run's, under ``record["model"]``.
        """

    def applies(self, config: RunConfig) -> bool:
        """Whether the stage has anything to do; one that has not is left out."""
        return True

    def check(self, config: RunConfig) -> None:  # noqa: B027 - most stages need no check
        """Raise ConfigError for settings that this stage could not run with; called before the first stage of a run."""

    def adopt(self, context: Context, source: Stored) -> bool:
        """Take over what this stage left in another run; False where it cannot be taken over and is done again."""
        return False


@runtime_checkable
class Method(Protocol):
    """An algorithm that trains an agent, made from its own frozen ``Config``."""

    Config: ClassVar[type]
    """a frozen dataclass; its fields are the settings of the group ``method``"""

    def stages(self) -> Sequence[Stage]:
        """The stages, in order. The evaluation after them belongs to the run."""
        ...


def make_method(settings: Mapping[str, Any]) -> Method:
    """Make the method that the group ``method`` names; raises UnknownNameError or ConfigError."""
    raw = dict(settings)
    name = raw.pop("name", None)
    target = raw.pop("_target_", None)
    path = name or target
    if not isinstance(path, str):
        raise ConfigError(f"method names nothing, got {dict(settings)!r}; expected method.name or method._target_")
    if name is None and ":" not in path:  # Hydra's dotted form
        module, _, attribute = path.rpartition(".")
        path = f"{module}:{attribute}"
    factory = methods.get(path)
    config_class = getattr(factory, "Config", None)
    if config_class is None or not callable(factory):
        raise ConfigError(f"method {path!r} has no Config; expected a class with a dataclass Config and stages()")
    made = factory(read_settings(config_class, raw, where="method"))
    names = [s.name for s in made.stages()]  # pyright: ignore[reportAttributeAccessIssue]
    if len(set(names)) != len(names):
        raise ConfigError(f"method {path!r} has two stages of one name: {', '.join(names)}")
    if not isinstance(made, Method):
        raise ConfigError(f"method {path!r} is no method: expected a class attribute Config and a method stages()")
    return made


def round_name(stage: str, round_index: int) -> str:
    """The name of a stage that is played once a round: ``train``, ``train.1``, ``train.2``."""
    return stage if round_index == 0 else f"{stage}.{round_index}"


def reported(folder: Path, context: Context) -> str:
    """A folder of the run as its record names it: relative, so that a run can be moved."""
    try:
        return str(folder.relative_to(context.folder))
    except ValueError:
        return str(folder)
