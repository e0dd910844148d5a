"""Plain configuration data into frozen dataclasses, with one line for everything that does not fit.

``read_settings`` checks names and types before anything runs: a misspelt key is found at the start, not after an hour.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from steca_gym.errors import ConfigError, DataError, UnknownNameError, shown
from steca_gym.redaction import hide_interpolated, secret_setting
from steca_gym.registry import explain_unknown

ConfigT = TypeVar("ConfigT")


def read_settings(cls: type[ConfigT], raw: Mapping[str, Any], *, where: str) -> ConfigT:
    """Make a dataclass from plain data.

    Nested dataclasses, optional values, literals, tuples and mappings are read by the annotations of the fields.
    Integers are accepted where a float is expected; nothing else is converted.

    Args:
        cls: a dataclass.
        raw: names to values, e.g. a group of the configuration.
        where: the group's name, for messages: ``"method"`` gives ``method.num_rounds``; empty for the whole
            configuration.

    Raises:
        UnknownNameError: a name that the dataclass does not have; the line shows the nearest one.
        ConfigError: a required value is missing, a value has the wrong type, or the dataclass itself refuses it.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where or 'it'} must be a group of settings, got {shown(raw)}")
    hints: dict[str, Any] = _hints(cls)  # type: ignore[arg-type]  # a class is hashable
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    inside = f"{where}." if where else ""
    for name, value in raw.items():
        if name not in fields:
            known = [f"{inside}{f}" for f in fields]
            raise UnknownNameError(explain_unknown("setting", f"{inside}{name}", known))
        values[str(name)] = _read(hints[name], value, f"{inside}{name}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"setting {inside}{name} has no value; add {inside}{name}=... to the command")
    try:
        return cls(**values)
    except ConfigError as error:
        raise type(error)(f"{where}: {error}" if where else str(error)) from error


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def read_stored(cls: type[ConfigT], raw: Any, *, where: str) -> ConfigT:
    """Make a dataclass from what a file holds; as ``read_settings``, but what does not fit is a DataError."""
    if isinstance(raw, Mapping):
        missing = [
            f.name
            for f in dataclasses.fields(cls)  # type: ignore[arg-type]
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in raw
        ]
        if missing:
            raise DataError(f"{'.'.join(filter(None, (where, missing[0])))} is missing")
    try:
        return read_settings(cls, raw, where=where)
    except ConfigError as error:
        raise DataError(str(error)) from error


def _read(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, where)
    if hint is Any:
        return value
    if origin is Literal:
        known = get_args(hint)
        if value not in known:
            raise ConfigError(f"{where} must be one of {', '.join(map(str, known))}, got {shown(value)}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        return read_settings(hint, value, where=where)
    if origin in (tuple, list, Sequence) or hint in (tuple, list):
        return _read_sequence(hint, value, where)
    if origin in (dict, Mapping) or hint in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a group of settings, got {shown(value)}")
        held = (get_args(hint) or (str, Any))[1]
        return dict(value) if held is Any else {str(k): _read(held, v, f"{where}.{k}") for k, v in value.items()}
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ConfigError(f"{where} must be a number that a float holds, got {str(value)[:20]}...") from None
    wrong = not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool)  # pyright: ignore[reportArgumentType]
    if wrong:
        raise ConfigError(f"{where} must be {_NAMES.get(hint, hint.__name__)}, got {shown(value)}")  # pyright: ignore[reportAttributeAccessIssue]
    return value


def _read_union(choices: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    errors = []
    for choice in choices:
        if choice is type(None):
            continue
        try:
            return _read(choice, value, where)
        except ConfigError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else ConfigError(f"{where}: no accepted type fits {shown(value)}")


def _read_sequence(hint: Any, value: Any, where: str) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{where} must be a list, got {shown(value)}")
    args = get_args(hint)
    item = args[0] if args else Any
    made = [_read(item, v, f"{where}[{i}]") for i, v in enumerate(value)]
    return made if get_origin(hint) is list or hint is list else tuple(made)


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def refuse_secrets(spelt: Any, resolved: Any) -> None:
    """Raise ConfigError where a setting spells out a secret; hide those that settings take from elsewhere.

    Args:
        spelt: the composed configuration before interpolation.
        resolved: the same with all values.
    """
    secret = secret_setting(spelt)
    if secret:
        raise ConfigError(
            f"setting {secret!r} spells out a secret, which would be stored with the run; put it into an environment "
            f"variable and write {secret}='${{oc.env:NAME}}'"
        )
    hide_interpolated(spelt, resolved)


def plain(value: Any) -> Any:
    """Settings as JSON data: dataclasses become dictionaries, tuples lists, paths texts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def digest(value: Any) -> str:
    """Twelve hex digits that are equal for equal settings."""
    text = json.dumps(plain(value), sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()


def differences(held: Any, asked: Any, prefix: str = "") -> list[str]:
    """The settings that differ, one text each: ``agent.train.learning_rate: 0.001, asked for 0.002``."""
    if isinstance(held, Mapping) and isinstance(asked, Mapping):
        names = [*held, *(k for k in asked if k not in held)]
        return [
            line
            for name in names
            for line in differences(held.get(name), asked.get(name), f"{prefix}.{name}" if prefix else str(name))
        ]
    return [] if held == asked else [f"{prefix}: {shown(held)}, asked for {shown(asked)}"]
