from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steca_gym.agents.tiny import (
    TinySettings,
    build_tiny,
    make_tokenizer,
    tiny_reinforced_settings,
    tiny_warm_up_settings,
    warm_up,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from steca_gym.agent import Message, Prompt
from steca_gym.chat import codec_of, encode_conversation
from steca_gym.errors import ConfigError, DataError
from steca_gym.trajectory import Step, Trajectory

CORPUS = [
    "You are in the middle of a room. Looking quickly around you, you see a bed 1, a drawer 12, and a "
    "drawer 3.\n\nYour task is to: put some soapbar on drawer.",
    "Thought: I should look in drawer 12.\nAction: go to drawer 12",
    "You arrive at drawer 12. The drawer 12 is closed.",
    "Thought: It is closed.\nAction: open drawer 12",
] * 3
SIZES: dict[str, Any] = {"num_layers": 1, "hidden_size": 16, "num_heads": 2, "vocab_size": 400}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return make_tokenizer(CORPUS, vocab_size=1000, model_max_length=512)


@given(text=st.text(max_size=60))
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    if any(mark in text for mark in ("<|",)):
        return
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("text", [*CORPUS[:4], "Thought: ...\nAction: go to sinkbasin 47", "  two  blanks \n\n\ttab"])
def test_environment_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_words_and_numbers_are_one_token_each(tokenizer: Any) -> None:
    ids = tokenizer.encode(" drawer 12.\n")
    assert [tokenizer.decode(i) for i in ids] == [" drawer", " 12", ".", "\n"]
    assert tokenizer.encode("go to drawer 12")[-2:] == tokenizer.encode("You see a drawer 12")[-2:]


def test_a_turn_costs_three_marks(tokenizer: Any) -> None:
    texts = ["A room.", CORPUS[1], CORPUS[2]]
    roles = ("user", "assistant", "user")
    ids, mask = encode_conversation(tokenizer, [Message(r, t) for r, t in zip(roles, texts, strict=True)])
    assert len(ids) == sum(len(tokenizer.encode(t)) for t in texts) + 4
    covered = tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])
    assert covered == CORPUS[1] + "<|im_end|>"
    assert codec_of(tokenizer).stop_ids == {tokenizer.eos_token_id}


def test_the_template_marks_generations_for_other_trainers_too(tokenizer: Any) -> None:
    messages = [Message("user", "A room."), Message("assistant", CORPUS[1]), Message("user", CORPUS[2])]
    encoded = tokenizer.apply_chat_template(
        [m.as_dict() for m in messages], return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = encode_conversation(tokenizer, messages)
    assert list(encoded["input_ids"]) == ids
    assert list(encoded["assistant_masks"]) == mask


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    folders = [build_tiny(CORPUS, tmp_path / name, seed=seed, **SIZES) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    read = [{p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders]
    assert read[0] == read[1]
    assert read[0]["tokenizer.json"] == read[2]["tokenizer.json"]
    assert read[0]["model.safetensors"] != read[2]["model.safetensors"]


def test_transformers_loads_and_generates(tmp_path: Path) -> None:
    folder = build_tiny(iter(CORPUS), tmp_path, settings=TinySettings(num_layers=3), **SIZES)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.num_hidden_layers == 1 and len(tokenizer) == model.config.vocab_size
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "A room."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**ids, max_new_tokens=3, do_sample=False)
    assert out.shape[1] <= ids["input_ids"].shape[1] + 3


@pytest.mark.parametrize(
    "bad", [{"num_layers": 0}, {"hidden_size": 18, "num_heads": 4}, {"vocab_size": 100}, {"depth": 2}]
)
def test_bad_sizes(bad: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_tiny(CORPUS, tmp_path, **bad)
    assert "\n" not in str(caught.value)


def test_the_warm_up_makes_and_trains(tmp_path: Path) -> None:
    step = Step(thought="It is closed.", action="open drawer 12", observation="You open it.")
    expert = Trajectory(task_id="a", first_observation=CORPUS[0], steps=(step, step))
    report = warm_up(
        [expert] * 4,
        tmp_path / "model",
        prompt=Prompt(),
        sizes=TinySettings(**SIZES),
        settings=tiny_warm_up_settings(max_steps=30, learning_rate=1e-2),
    )
    assert report.last_loss < report.first_loss / 2
    AutoModelForCausalLM.from_pretrained(report.model)


def test_the_reinforced_training_is_gentler_than_the_warm_up() -> None:
    assert tiny_reinforced_settings().learning_rate < tiny_warm_up_settings().learning_rate
    assert tiny_reinforced_settings(max_steps=3).num_epochs is None


def test_an_empty_corpus(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs texts"):
        build_tiny([], tmp_path)
