"""Messages: short, on what can be shown, also of values that cannot."""

from __future__ import annotations

import pickle

import pytest

from steca_gym.errors import MAX_MESSAGE_CHARS, ConfigError, shown


def test_a_message_that_quotes_something_endless_keeps_its_beginning_and_its_end() -> None:
    error = ConfigError("got " + "x" * 1_000_000 + "; expected less")
    assert len(str(error)) <= MAX_MESSAGE_CHARS
    assert str(error).startswith("got x") and str(error).endswith("expected less")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_secret_in_a_long_message_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", "s3cret-value")
    for at in (0, 1000, 1330, 1500, 3000):
        assert "s3cret" not in str(ConfigError("." * at + "s3cret-value" + "." * 4000))


def test_values_that_cannot_be_shown_are_named() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]

    class Odd:
        def __repr__(self) -> str:
            raise RuntimeError

    assert shown(deep) == "<list>" and shown(Odd()) == "<Odd>" and shown(10**5000) == "<int>"
    assert shown("a") == "'a'" and shown("a" * 100).endswith("... (str)")
