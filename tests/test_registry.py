"""Look-ups by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from steca_gym.errors import ConfigError, UnknownNameError
from steca_gym.registry import Registry, import_object


def test_entries_are_imported_at_first_use() -> None:
    table = Registry("thing")
    table.register("path", "pathlib:Path")
    table.register("missing", "no_such_module:x")
    assert table.get("path").__name__ == "Path"
    assert list(table) == ["missing", "path"] and "path" in table and "paths" not in table
    with pytest.raises(ConfigError, match="cannot import thing 'no_such_module:x': No module named 'no_such_module'"):
        table.get("missing")
    # What is not registered may be given as module:Object.
    assert table.get("pathlib:PurePath").__name__ == "PurePath"
    with pytest.raises(ConfigError, match="no thing in pathlib: 'Pth'; did you mean 'Path'"):
        table.get("pathlib:Pth")


def test_an_unknown_name_shows_the_nearest_and_all() -> None:
    table = Registry("thing")
    table.register("react", print)
    table.register("expert", print)
    with pytest.raises(UnknownNameError, match="no thing 'raect'; did you mean 'react'\\? known: expert, react"):
        table.get("raect")
    with pytest.raises(UnknownNameError, match="no thing 'zzz'; known: expert, react"):
        table.get("zzz")


def test_a_name_is_taken_once() -> None:
    table = Registry("thing")
    table.register("a", print)
    table.register("a", print)
    with pytest.raises(ConfigError, match="already registered"):
        table.register("a", "other:thing")


class Speaker:
    """Says things."""

    @staticmethod
    def check_settings(*, volume: int = 1, **others: object) -> None:
        if volume > 11:
            raise ConfigError(f"volume must be <= 11, got {volume}")

    def __init__(self, *, volume: int = 1, name: str | None = None) -> None:
        self.volume = volume

    def say(self) -> int:
        return self.volume


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"volum": 3}, "no setting of speaker .*'volum'; did you mean 'volume'"),
        ({"volume": "loud"}, "'volume' of speaker .* must be int, got 'loud'"),
        ({"volume": True}, "must be int, got True"),
        ({"volume": 12}, "volume must be <= 11, got 12"),
    ],
)
def test_settings_are_checked_before_anything_is_made(options: dict[str, object], words: str) -> None:
    table = Registry("speaker", methods=("say",))
    table.register("plain", Speaker)
    for names in ({"name": "plain"}, {"_target_": f"{__name__}.Speaker", "_partial_": True}):
        table.check(names)
        with pytest.raises(ConfigError, match=words):
            table.check({**names, **options})


def test_an_object_without_the_methods_of_its_kind_is_refused() -> None:
    table = Registry("speaker", methods=("say",))
    for settings in ({"name": "json:JSONDecoder"}, {"_target_": "json.JSONDecoder"}):
        with pytest.raises(ConfigError, match=r"has no say\(\); expected an object with say\(\)"):
            table.check(settings)
        with pytest.raises(ConfigError, match=r"has no say\(\)"):
            table.make(settings)
    with pytest.raises(ConfigError, match="names nothing"):
        table.check({})
    with pytest.raises(ConfigError, match="cannot import speaker 'no_such.Thing'"):
        table.check({"_target_": "no_such.Thing"})
    with pytest.raises(ConfigError, match="is a float, expected a class or function"):
        table.check({"name": "math:pi"})


def test_a_wrong_name_in_a_module_is_answered_with_what_it_defines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import os\nfrom pathlib import Path\n\nLIMIT = 3\n\n\nclass Mine:\n    pass\n\n\ndef _hidden():\n    pass\n"
    (tmp_path / "odd_names.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"no agent in odd_names: 'Main'; did you mean 'Mine'\? known: LIMIT, Mine$"):
        import_object("odd_names:Main", "agent")
