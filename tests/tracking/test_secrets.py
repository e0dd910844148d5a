"""What leaves the machine holds no secret, and keeps everything else."""

from __future__ import annotations

import json

import pytest

from steca_gym.tracking.secrets import HIDDEN, without_secrets


@pytest.mark.parametrize(
    "name", ["api_key", "OPENAI_API_KEY", "password", "hf_token", "Authorization", "client_secret", "x-api-key", "key"]
)
def test_a_setting_whose_name_says_so_is_hidden(name: str) -> None:
    assert without_secrets({"agent": {"engine": {"headers": {name: "abc"}}}}) == {
        "agent": {"engine": {"headers": {name: HIDDEN}}}
    }


@pytest.mark.parametrize(
    "value",
    [
        "sk-abcdefghijklmnopqrst",
        "use hf_abcdefghijklmnopqrstuv here",
        "https://me:pass@host/v1",
        "https://host/v1?api_key=abc123&x=1",
        "Bearer abc.def",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_a_value_that_is_a_secret_is_hidden_under_any_name(value: str) -> None:
    text = json.dumps(without_secrets({"note": [value]}))
    assert HIDDEN in text
    for secret in ("abcdefghijklmnop", "pass@", "abc123", "abc.def", "ABCDEFGHIJ"):
        assert secret not in text


def test_values_of_secret_environment_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_TOKEN", "q7-plain-looking")
    assert without_secrets({"url": "http://host/q7-plain-looking/v1"}) == {"url": f"http://host/{HIDDEN}/v1"}


def test_other_settings_stay_as_they_are() -> None:
    settings = {
        "max_new_tokens": 96,
        "num_tokens": 5,
        "max_tokens_field": "max_tokens",
        "api_key_env": "OPENAI_API_KEY",
        "keyboard": "a",
        "author": "b",
        "base_url": "http://127.0.0.1:8000/v1?model=x",
        "tags": ["a", None, 1.5, True],
        "api_key": None,
    }
    assert without_secrets(settings) == settings
