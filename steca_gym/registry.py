"""Names to objects: agents, methods, encoders, reflectors, trackers, executors, reports and turn formats.

A name is either registered (``"steca"``) or points into a module (``"my_module:MyMethod"``). A setting of the
configuration names its object with ``name`` or with Hydra's ``_target_``. Environments are registered with Gymnasium.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from steca_gym.errors import ConfigError, StecaError, UnknownNameError


def explain_unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Return one line: what was asked, the nearest known name, and what exists."""
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return f"no {kind} {name!r}; {hint}known: {', '.join(names) or 'none'}"


class Registry:
    """A table from name to ``"module:attribute"`` (imported at first use) or to the object itself.

    >>> agents = Registry("agent")
    >>> agents.register("random", "steca_gym.agents.scripted:RandomAgent")
    >>> agents.get("random")
    >>> agents.get("my_module:MyAgent")

    Args:
        kind: what its objects are called in messages.
        rooms: modules that register their objects when they are imported; imported at the first look-up.
        methods: what every object must be able to do; ``check`` and ``make`` refuse others.
    """

    def __init__(self, kind: str, *, rooms: tuple[str, ...] = (), methods: tuple[str, ...] = ()) -> None:
        """Create a table without entries."""
        self.kind = kind
        self.methods = methods
        self._rooms = rooms
        self._entries: dict[str, Any] = {}

    def register(self, name: str, entry: Any) -> None:
        """Add ``name``; raises ConfigError when the name is taken by something else."""
        taken = self._entries.get(name)
        if taken is not None and taken != entry:
            raise ConfigError(f"{self.kind} {name!r} is already registered to {taken!r}; choose another name")
        self._entries[name] = entry

    def get(self, name: str) -> Any:
        """Return the object behind a registered name or ``module:Object``.

        Raises:
            UnknownNameError: a name that is not registered; the line shows the nearest one.
            ConfigError: a module that cannot be imported, or an object that it does not have.
        """
        self._load_rooms()
        entry = self._entries.get(name)
        if entry is None:
            if ":" not in name:
                raise UnknownNameError(
                    explain_unknown(self.kind, name, self._entries) + "; or give one of your own as module:Object"
                )
            return import_object(name, self.kind)
        return import_object(entry, self.kind) if isinstance(entry, str) else entry

    def make(self, settings: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> Any:
        """Make the object that a group of settings describes.

        ``name`` is looked up here and called with the other settings; ``_target_`` is made by Hydra, nested targets
        included.
        """
        factory, options, name = self._factory(settings)
        if "_target_" in settings and ":" not in str(settings["_target_"]):
            made = instantiate(self.kind, settings, *args, **kwargs)
        else:
            try:
                made = factory(*args, **options, **kwargs)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"setting {self.kind!r} ({name}) does not fit: {error}; check its keys") from error
        self.check_methods(made, name)
        return made

    def check(self, settings: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> None:
        """Raise ConfigError where ``make`` could not be called like this; imports the object, and makes nothing.

        Names of settings are checked against the signature. Values are checked where the object has a function
        ``check_settings``, which takes the settings as keywords and raises ConfigError (see ``checked_by``).
        """
        factory, options, name = self._factory(settings)
        check_call(f"{self.kind} ({name})", factory, options, *args, **kwargs)
        if inspect.isclass(factory):
            self.check_methods(factory, name)

    def check_methods(self, found: Any, name: str) -> None:
        """Raise ConfigError where an object lacks a method that its kind must have."""
        missing = [m for m in self.methods if not callable(getattr(found, m, None))]
        if missing:
            needed = _listed(self.methods)
            raise ConfigError(f"{self.kind} {name!r} has no {missing[0]}(); expected an object with {needed}")

    def factory(self, settings: Mapping[str, Any]) -> Any:
        """The class or function that a group of settings names."""
        return self._factory(settings)[0]

    def _factory(self, settings: Mapping[str, Any]) -> tuple[Any, dict[str, Any], str]:
        """The object that settings name, its own settings, and its name."""
        options = {str(k): v for k, v in settings.items() if k not in _HYDRA_KEYS}
        target = settings.get("_target_")
        name = target if target is not None else options.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(
                f"setting {self.kind!r} names nothing, got {dict(settings)!r}; give it a name or a _target_"
            )
        if target is not None and ":" not in name:
            return import_dotted(name, self.kind), options, name
        return self.get(name), options, name

    def _load_rooms(self) -> None:
        for room in self._rooms:
            importlib.import_module(room)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the known names, sorted."""
        self._load_rooms()
        return iter(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        """Whether ``name`` is registered."""
        self._load_rooms()
        return name in self._entries


def import_object(path: str, kind: str = "object") -> Any:
    """Import ``module:Object`` (or ``module:Class.attribute``); raises ConfigError with what is missing."""
    module_name, _, attribute = path.partition(":")
    if not module_name or not attribute:
        raise ConfigError(f"{kind} {path!r} is not module:Object; e.g. my_module:MyClass")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"cannot import {kind} {path!r}: {error}; give a module that Python finds (the current folder and "
            "--config-dir are searched)"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(explain_unknown(f"{kind} in {module_name}:", part, _own_names(found, module_name)))
        found = getattr(found, part)
    return found


def _own_names(holder: Any, module: str) -> list[str]:
    """What a module or class of it defines: no private names, and nothing that it has imported."""
    return [
        name
        for name, value in getattr(holder, "__dict__", {}).items()
        if not name.startswith("_") and not inspect.ismodule(value) and getattr(value, "__module__", module) == module
    ]


def import_dotted(path: str, kind: str = "object") -> Any:
    """Import Hydra's form ``package.module.Object``; raises ConfigError with what is missing."""
    from hydra.utils import get_object

    try:
        return get_object(path)
    except Exception as error:  # Hydra raises ImportError, ValueError, or what the module raises
        raise ConfigError(
            f"cannot import {kind} {path!r}: {' '.join(str(error).split())}; expected package.module.Object"
        ) from error


def check_call(what: str, factory: Any, options: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> None:
    """Raise ConfigError where ``factory(*args, **options, **kwargs)`` could not be called, or refuses the values."""
    if not callable(factory):
        raise ConfigError(f"{what} is a {type(factory).__name__}, expected a class or function that makes one")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some built-in callables have none
        return
    known = [n for n, p in signature.parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for name in options:
        if name not in known and not takes_any:
            raise UnknownNameError(explain_unknown(f"setting of {what}:", name, known))
    hints = _type_hints(factory)
    for name, value in options.items():
        if name in hints and not _fits(hints[name], value):
            expected = getattr(hints[name], "__name__", None) or str(hints[name])
            raise ConfigError(f"setting {name!r} of {what} must be {expected}, got {value!r}")
    try:
        signature.bind(*args, **{**options, **kwargs})
    except TypeError as error:
        raise ConfigError(f"setting {what} does not fit: {error}; check its keys") from error
    if (check := getattr(factory, "check_settings", None)) is not None:
        check(**options)


FactoryT = TypeVar("FactoryT", bound=Callable[..., Any])


def checked_by(check: Callable[..., Any]) -> Callable[[FactoryT], FactoryT]:
    """Let a function's settings be checked before it is called, e.g. before hours of work.

    >>> @checked_by(TinySettings)
    ... def build_tiny(corpus, output_dir, **changes): ...
    """

    def mark(factory: FactoryT) -> FactoryT:
        factory.check_settings = check  # type: ignore[attr-defined]
        return factory

    return mark


def _type_hints(factory: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(factory.__init__ if inspect.isclass(factory) else factory)
    except Exception:  # names that exist for type checkers only
        return {}


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value has a plain type (number, text, bool, None, or a union of them); other types are not judged."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return any(_fits(choice, value) for choice in typing.get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool, type(None)):
        return isinstance(value, hint)
    return True


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{n}()" for n in names)


_HYDRA_KEYS = frozenset({"_target_", "_partial_", "_args_", "_recursive_", "_convert_"})


def instantiate(name: str, settings: Mapping[str, Any], /, *args: Any, **kwargs: Any) -> Any:
    """What a ``_target_`` makes; our own errors are raised as they are, every other one as a ConfigError."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate as hydra_instantiate

    try:
        return hydra_instantiate(dict(settings), *args, **kwargs)
    except InstantiationException as error:
        # Hydra wraps whatever was raised; what matters is inside.
        if isinstance(error.__cause__, StecaError):
            raise error.__cause__ from error
        why = error.__cause__ or error
        raise ConfigError(
            f"setting {name!r} cannot be made: {' '.join(str(why).split())}; check its _target_ and its keys"
        ) from error


def checked_call(name: str, make: Callable[..., Any], *args: Any) -> Any:
    """Call a factory made by ``_partial_``; a TypeError becomes a line about the setting."""
    try:
        return make(*args)
    except TypeError as error:
        raise ConfigError(f"setting {name!r} does not fit: {error}; check its keys") from error


agents = Registry("agent", rooms=("steca_gym.agents",), methods=("act", "release"))
encoders = Registry("encoder", rooms=("steca_gym.distances",), methods=("encode",))
executors = Registry("executor", methods=("serve", "submit", "gather", "leave", "abandon", "close"))
fetchers = Registry("world to fetch", rooms=("steca_gym.envs",))
methods = Registry("method")
reflectors = Registry("reflector", rooms=("steca_gym.calibration.reflection", "steca_gym.agents"), methods=("reflect",))
reports = Registry("report")
turn_formats = Registry("turn format", rooms=("steca_gym.turns",), methods=("render", "parse"))
trackers = Registry("logger", methods=("log", "table", "summary", "finish"))

methods.register("none", "steca_gym.methods.none:NoTraining")
methods.register("sft", "steca_gym.methods.sft:SFT")
methods.register("rft", "steca_gym.methods.rft:RFT")
methods.register("dagger", "steca_gym.methods.dagger:DAgger")
methods.register("e2cl", "steca_gym.methods.e2cl:E2CL")
methods.register("eto", "steca_gym.methods.eto:ETO")
methods.register("ipr", "steca_gym.methods.ipr:IPR")
methods.register("ppo", "steca_gym.methods.ppo:PPO")
methods.register("grpo", "steca_gym.methods.grpo:GRPO")
methods.register("gigpo", "steca_gym.methods.gigpo:GiGPO")
methods.register("early_experience", "steca_gym.methods.early_experience:EarlyExperience")
methods.register("step_agent", "steca_gym.methods.step_agent:StepAgent")
methods.register("steca", "steca_gym.methods.steca:STeCa")
reports.register("html", "steca_gym.reports.html:HtmlReport")
reports.register("text", "steca_gym.reports.plain:TextReport")
trackers.register("jsonl", "steca_gym.tracking:JsonlTracker")
trackers.register("wandb", "steca_gym.tracking.wandb_tracker:WandbTracker")
trackers.register("trackio", "steca_gym.tracking.trackio_tracker:TrackioTracker")
trackers.register("tensorboard", "steca_gym.tracking.tensorboard_tracker:TensorBoardTracker")
executors.register("local", "steca_gym.collectors:InProcess")
executors.register("processes", "steca_gym.collectors:Processes")
executors.register("ray", "steca_gym.collectors.transports.ray:RayWorkers")
