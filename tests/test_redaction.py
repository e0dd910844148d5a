"""What counts as a secret, and what does not."""

from __future__ import annotations

import base64
import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steca_gym import redaction
from steca_gym.errors import ConfigError, one_line
from steca_gym.redaction import MASK, hide_interpolated, holds_credentials, redact, redact_data, secret_setting

KEY = "sk-Pl4nted/+key=="


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_hidden", set())


@pytest.mark.parametrize(
    "form",
    [KEY, quote(KEY, safe=""), json.dumps(f'"{KEY}')[3:-1], base64.b64encode(f":{KEY}".encode()).decode().rstrip("=")],
)
def test_every_form_goes(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    assert redact(f"said {form}.") == f"said {MASK}."


@given(
    st.text(alphabet=st.characters(codec="utf-8"), min_size=4, max_size=40), st.text(max_size=40), st.text(max_size=40)
)
def test_a_known_secret_never_stays(secret: str, before: str, after: str) -> None:
    if secret.strip() and secret not in MASK:
        assert (
            secret not in redact(before + secret + after, known=[secret]).replace(MASK, "\0")
            or secret in before + after
        )


def test_errors_and_failures_carry_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", KEY)
    error = ConfigError(f"the server said {KEY}")
    assert KEY not in str(error) + repr(error) + one_line(ValueError(KEY)) + one_line(error)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://user:pw@h/v1", "http://[hidden]@h/v1"),
        ("see https://h/v1?a=1&api_key=abc&b=2", "see https://h/v1?a=1&api_key=[hidden]&b=2"),
        ("Authorization: Bearer abcdef", "Authorization: Bearer [hidden]"),
        ("db.password=hunter2 is wrong", "db.password=[hidden] is wrong"),
    ],
)
def test_credentials_go_wherever_they_are_from(text: str, kept: str) -> None:
    assert redact(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "max_new_tokens=96, got 0",
        "unexpected token: '}'",
        "http://127.0.0.1:8000/v1 did not answer",
        "write to me@h.example, see http://h/a@b",
        "password='${oc.env:DB}'",
        "key 'agent.model' has no value",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_ordinary_values_of_the_environment_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("A_KEY", "household"), ("B_TOKEN", "short"), ("SECRET_PATH", KEY), ("C_KEY", "/etc/some.key")):
        monkeypatch.setenv(name, value)
    assert redact(f"household short {KEY} /etc/some.key") == f"household short {KEY} /etc/some.key"


def test_data_keeps_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    assert redact_data({"a": [KEY, 1, None], "b": {"c": (f"x{KEY}",)}}) == {
        "a": [MASK, 1, None],
        "b": {"c": [f"x{MASK}"]},
    }


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"logger": {"api_key": KEY}}, "logger.api_key"),
        ({"a": [{"db_password": "x"}]}, "a[0].db_password"),
        ({"env": {"url": "ws://u:p@h"}}, "env.url"),
        ({"agent": {"api_key_env": KEY}}, "agent.api_key_env"),
        ({"agent": {"api_key_env": "MY_KEY", "max_tokens_field": "max_tokens", "max_new_tokens": 9}}, ""),
        (
            {
                "logger": {"password": "${oc.env:DB}", "token": "", "secret": None},
                "key": "0-90f7",
                "url": "http://h/v1",
            },
            "",
        ),
    ],
)
def test_settings_that_spell_out_a_secret(settings: dict[str, object], found: str) -> None:
    assert secret_setting(settings) == found


def test_what_a_setting_takes_from_elsewhere_is_hidden() -> None:
    hide_interpolated(
        {"a": {"password": "${oc.env:X}", "dir": "${oc.env:HOME}"}}, {"a": {"password": KEY, "dir": "/home/me"}}
    )
    assert redact(f"{KEY} in /home/me") == f"{MASK} in /home/me"


def test_urls() -> None:
    for url in ("http://u:p@h", "http://u@h/v1", "https://h/?api-key=1", "https://h/?sig=1", "http://[u@h"):
        assert holds_credentials(url)
    for url in ("http://h:1/v1?api-version=1", "u:p@h", "see http://u:p@h", ""):
        assert not holds_credentials(url)


def test_logs(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", KEY)
    redaction.guard_loggers("some.library")
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("some.library").debug("headers %r", [("x", KEY)])
    assert KEY not in caplog.text and MASK in caplog.text


def test_long_texts_are_quick() -> None:
    for unit in ("a.", "://", "a=", "x@", "token", "bearer ", "?key=", "a-b_c."):
        assert len(redact(unit * (400_000 // len(unit)))) > 0
