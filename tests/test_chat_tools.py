"""Functions that turns may call: shown by chat templates, or as JSON text; equal in prompts and in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from steca_gym.agent import Message, Prompt, Turn, TurnRequest, find_turn_format
from steca_gym.chat import codec_of
from steca_gym.cli.composing import compose
from steca_gym.errors import ConfigError
from steca_gym.registry import turn_formats
from steca_gym.runs.context import read_config
from steca_gym.training.samples import IGNORED, encode_sample
from steca_gym.trajectory import Step, Trajectory, WeightedTrajectory
from steca_gym.turns import ToolsFormat, schema_of, tools_of
from tests.fakes import tiny_tokenizer

trl = pytest.importorskip("trl", reason="SKIPPED: the templates are those that come with trl (the llm extra)")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
RENDER = find_turn_format("tools").render
PLAYED = Trajectory(
    task_id="t",
    first_observation="You are in room 0.",
    steps=(
        Step(thought="on", action="right", observation="You are in room 1.", text=RENDER("on", "right")),
        Step(action="I do not know.", parsed=False, observation="Unread.", text="I do not know."),
        Step(action="open", observation="The door opens.", text=RENDER("", "open")),
    ),
)


def wire(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def tokenizer(name: str) -> Any:
    return tiny_tokenizer((TEMPLATES / f"{name}.jinja").read_text())


def messages(instruction: str) -> tuple[Message, ...]:
    return PLAYED.messages(Prompt(instruction=instruction).written_in("tools"))[:-1]


@pytest.mark.parametrize("instruction", ["", "Walk."])
def test_a_template_that_shows_functions_is_given_them_and_observations_are_results(instruction: str) -> None:
    qwen = tokenizer("qwen2_5")
    talk = messages(instruction)
    expected = [
        *([wire("system", instruction)] if instruction else []),
        wire("user", "You are in room 0."),
        wire("assistant", PLAYED.steps[0].text),
        wire("tool", "You are in room 1."),
        wire("assistant", "I do not know."),
        wire("user", "Unread."),
        wire("assistant", PLAYED.steps[2].text),
    ]
    tools = list(tools_of(ToolsFormat()))
    for end, generation in ((len(talk), False), (len(talk) - 1, True), (len(talk) - 3, True)):
        text = qwen.apply_chat_template(expected[:end], tools=tools, tokenize=False, add_generation_prompt=generation)
        ids, _ = codec_of(qwen).encode(talk[:end], for_generation=generation)
        assert qwen.decode(ids) == text and "<tool_response>" in text
    # As the template writes a tool call of its own.
    call = {"type": "function", "function": {"name": "act", "arguments": {"action": "right"}}}
    native = {"role": "assistant", "content": "on", "tool_calls": [call]}
    own = qwen.apply_chat_template([expected[0], native], tokenize=False)
    assert own == qwen.apply_chat_template([expected[0], wire("assistant", PLAYED.steps[0].text)], tokenize=False)


def test_training_reads_what_the_rollout_read() -> None:
    qwen = tokenizer("qwen2_5")
    prompt = Prompt(instruction="Walk.").written_in("tools")
    sample = encode_sample(qwen, WeightedTrajectory(trajectory=PLAYED), prompt)
    begun, _ = codec_of(qwen).encode(PLAYED.messages(prompt)[:2], for_generation=True)
    assert list(sample.input_ids[: len(begun)]) == begun and '"name": "act"' in qwen.decode(begun)
    trained = qwen.decode([label for label in sample.labels if label != IGNORED])
    assert trained == "".join(f"{s.text}<|im_end|>" for s in PLAYED.steps)


@pytest.mark.parametrize("name", ["qwen3", "lfm2"])
def test_other_templates_show_the_functions_too(name: str) -> None:
    made = tokenizer(name)
    codec = codec_of(made)
    talk = messages("Walk.")
    ids, mask = codec.encode(talk)
    start, _ = codec.encode(talk[:2], for_generation=True)
    assert ids[: len(start)] == start and '"name": "act"' in made.decode(start)
    assert '"action": "right"' in made.decode([i for i, m in zip(ids, mask, strict=True) if m])


def test_without_functions_in_the_template_they_are_text_of_the_instruction() -> None:
    plain = tiny_tokenizer()
    with_text = plain.decode(codec_of(plain).encode(messages("Walk."))[0])
    assert with_text.startswith("<|im_start|>system\nWalk.\n\nYou can call these functions:\n{")
    assert '"name": "act"' in with_text and "<tool_call>" in with_text
    # A model without instructions is trained on the calls: nothing is added.
    bare = plain.decode(codec_of(plain).encode(messages(""))[0])
    assert bare.startswith("<|im_start|>user\nYou are in room 0.")


@pytest.mark.slow
def test_a_local_model_acts_on_the_same_ids() -> None:
    from steca_gym.agents.transformers import TransformersAgent

    from tests.fakes import tiny_model

    qwen = tokenizer("qwen2_5")
    agent = TransformersAgent(tiny_model(), tokenizer=qwen, engine="generate")
    talk = messages("Walk.")
    turn: Turn | None = None
    for end in (2, 4):
        said = talk[:end]
        if turn is not None:  # what it said itself, by its ids
            said = (*talk[:2], Message("assistant", turn.text, turn.token_ids, turn.truncated), talk[3])
        asked = TurnRequest(episode_id="e", messages=said, seed=0, turn=end // 2 - 1)
        (turn,) = agent.act([asked])
        fresh = TransformersAgent(tiny_model(), tokenizer=qwen, engine="generate")
        assert fresh.act([asked])[0].token_ids == turn.token_ids
        assert turn.num_prompt_tokens_read + turn.num_prompt_tokens_reused == len(
            codec_of(qwen).encode(said, for_generation=True)[0]
        )


def test_a_prompt_is_written_in_the_format() -> None:
    config, _ = read_config(compose(["env/prompt=turns", "agent=expert", "agent.turn_format=json", "method=none"]))
    prompt = config.env.prompt.prompt().written_in(config.agent.turn_format)
    assert find_turn_format("json").instructions in prompt.instruction and "{turn_format}" not in prompt.instruction
    assert "{place}" in prompt.instruction and not prompt.tools
    answers = [m.content for m in prompt.examples if m.role == "assistant"]
    assert answers and all(json.loads(a)["thought"] and json.loads(a)["action"] for a in answers)
    react = [m.content for m in config.env.prompt.prompt().examples if m.role == "assistant"]
    assert [find_turn_format("react").parse(a).action for a in react] == [json.loads(a)["action"] for a in answers]
    assert config.env.prompt.prompt().written_in("react").examples == config.env.prompt.prompt().examples
    with pytest.raises(
        ConfigError, match="asks for 'Action: ...' lines, but turns are written as 'json'.*env/prompt=turns"
    ):
        read_config(compose(["env/prompt=react", "agent=expert", "agent.turn_format=json", "method=none"]))


class Moves(ToolsFormat):
    """Two functions instead of one."""

    name = "moves"
    tools = tuple(
        {"type": "function", "function": {"name": n, "parameters": {"type": "object", "properties": {}}}}
        for n in ("left", "right")
    )


def test_a_format_of_ones_own_has_a_name_and_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn_formats, "_entries", dict(turn_formats._entries))
    turn_formats.register("moves", Moves)
    found = find_turn_format("moves")
    assert isinstance(found, Moves) and schema_of(found) is None
    assert [t["function"]["name"] for t in json.loads(Prompt().written_in("moves").tools)] == ["left", "right"]
    config, _ = read_config(compose(["agent=expert", "agent.turn_format=moves", "method=none"]))
    assert config.agent.turn_format == "moves"
    with pytest.raises(ConfigError, match="no turn format 'mvoes'; did you mean 'moves'"):
        find_turn_format("mvoes")
