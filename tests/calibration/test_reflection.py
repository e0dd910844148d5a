"""Template and agent reflectors."""

import dataclasses
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steca_gym.agent import Need, Prompt, Turn, TurnRequest, find_turn_format
from steca_gym.calibration.foresight import foresee
from steca_gym.calibration.records import Reflection
from steca_gym.calibration.reflection import (
    MAX_REFLECTION_WORDS,
    AgentReflector,
    ExpertThoughtReflector,
    ReflectionCase,
    TemplateReflector,
    clean_reflection,
    count_words,
    cut_words,
)
from steca_gym.errors import AgentError, ConfigError
from steca_gym.registry import reflectors
from steca_gym.trajectory import Step, Trajectory


def case(
    observation: str = "On the shelf 1, you see a vase 1.",
    *,
    action: str = "go to shelf 1",
    right: str = "open fridge 1",
    thought: str = "",
    **step: bool,
) -> ReflectionCase:
    history = Trajectory(
        task_id="t",
        first_observation="You are in a room.",
        steps=(
            Step(action="look", observation="You see a shelf 1."),
            Step(action=action, observation=observation, **step),
        ),
    )
    return ReflectionCase(history=history, right_action=right, expert_thought=thought)


def template(of: ReflectionCase) -> str:
    (reflection,) = TemplateReflector().reflect([of])
    assert reflection.source == "template"
    return reflection.text


def test_the_ablation_keeps_the_experts_own_thought_before_and_after_the_fact() -> None:
    reflector = reflectors.make({"name": "expert_thought"})
    assert isinstance(reflector, ExpertThoughtReflector)
    told = case(thought="Go to shelf 1: that was wrong. The apple is in the fridge.")
    for write in (reflector.reflect, reflector.foresee, lambda cases: foresee(cases, reflector)):
        assert [r.text for r in write([told, case()])] == ["The apple is in the fridge.", "I should open fridge 1."]


def test_the_template_says_what_was_tried_what_came_and_what_to_do() -> None:
    assert template(case()) == "Go to shelf 1: that was wrong. I should open fridge 1."
    assert template(case(thought="The apple is in the fridge.")) == (
        "Go to shelf 1: that was wrong. The apple is in the fridge."
    )
    assert "nothing happened" in template(case("Nothing happens."))
    assert "nothing happened" in template(case("I do not understand.", valid=False))
    assert "changed nothing" in template(case("You see a shelf 1."))
    assert template(case(action="hm hm", parsed=False)) == "That was no action. I should open fridge 1."


@given(st.text(max_size=80), st.text(min_size=1, max_size=200), st.text(max_size=300))
def test_the_template_is_short_and_never_empty(action: str, right: str, thought: str) -> None:
    text = template(case(action=action, right=right, thought=thought))
    assert text and len(text.split()) <= TemplateReflector.max_words
    assert text == template(case(action=action, right=right, thought=thought))


def test_a_models_answer_is_reduced_to_one_thought() -> None:
    assert clean_reflection('Thought: "I was\nwrong."\nAction: go') == "I was wrong."
    assert clean_reflection("  I was wrong.  ") == "I was wrong."
    assert clean_reflection("") == ""
    assert clean_reflection("<reflection>I was wrong.</reflection>") == "I was wrong."
    assert len(clean_reflection("word " * 500).split()) == MAX_REFLECTION_WORDS


@pytest.mark.parametrize(
    ("text", "reflection"),
    [
        ("<think>Long thoughts. About much.</think>\n\nThe shelf was empty.", "The shelf was empty."),
        ("Long thoughts.\n</think>\nThought: The shelf was empty.\nAction: go", "The shelf was empty."),
        ("<think>Long thoughts that were cut", ""),
        ("Action: go to shelf 1", ""),
        ('{"action": "go"}', ""),
        ("**Thought:** I was wrong.\n**Action:** go", "I was wrong."),
    ],
)
def test_reasoning_and_actions_are_no_reflection(text: str, reflection: str) -> None:
    assert clean_reflection(text) == reflection


def test_a_reflection_is_read_in_the_agents_turn_format() -> None:
    assert clean_reflection('{"thought": "I was wrong.", "action": "x"}', find_turn_format("json")) == "I was wrong."
    assert clean_reflection("<thought>I was wrong.</thought>", find_turn_format("xml")) == "I was wrong."


def test_limits_count_characters_where_a_script_has_no_blanks() -> None:
    japanese = "棚には何もありませんでした。だから冷蔵庫を開けるべきです。" * 20
    short = clean_reflection(japanese)
    assert japanese.startswith(short) and short.endswith("。")
    assert 60 <= len(short) <= 2 * MAX_REFLECTION_WORDS and count_words(short) <= MAX_REFLECTION_WORDS
    assert count_words("x" * 5000) > MAX_REFLECTION_WORDS and len(clean_reflection("x" * 5000)) < 2000
    assert template(case(action="去" * 200, right="打开冰箱")).endswith("打开冰箱.")


def test_a_cut_ends_with_a_sentence_if_one_ends_late_enough() -> None:
    assert cut_words("One two three. Four five six.", 4) == "One two three."
    assert cut_words("One. Two three four five six.", 5) == "One. Two three four five"


@given(st.text(max_size=300), st.integers(1, 40))
def test_a_cut_text_is_short_enough_and_a_beginning(text: str, most: int) -> None:
    short = cut_words(text, most)
    assert count_words(short) <= most
    assert " ".join(text.split()).startswith(" ".join(short.split()))
    assert count_words(text) > most or short == text


def test_an_agent_with_too_few_turns_is_an_error() -> None:
    class Silent(Echo):
        def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
            return []

    with pytest.raises(AgentError, match="0 turns for 1 requests"):
        AgentReflector(Silent()).reflect([case()])


class Echo:
    name = "echo"
    needs: frozenset[Need] = frozenset()

    def __init__(self) -> None:
        self.seen: list[TurnRequest] = []
        self.released: list[str] = []

    def act(self, requests: Sequence[TurnRequest]) -> list[Turn]:
        self.seen += requests
        return [Turn(text=f"Thought: Case {i} was wrong.\nAction: x") for i in range(len(requests))]

    def release(self, episode_ids: Iterable[str]) -> None:
        self.released += episode_ids


def test_the_agent_reflects_on_the_whole_history_and_forgets_it() -> None:
    agent = Echo()
    reflector = AgentReflector(agent, Prompt(instruction="Play well."), max_new_tokens=20)
    found = reflector.reflect([case(), case(right="open drawer 2")])
    assert [(r.text, r.source) for r in found] == [
        ("Case 0 was wrong.", "agent:echo"),
        ("Case 1 was wrong.", "agent:echo"),
    ]
    first, second = agent.seen
    assert [m.role for m in first.messages] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert "open fridge 1" in first.messages[-1].content
    assert first.sampling.temperature == 0 and first.sampling.max_new_tokens == 20
    assert agent.released == [first.episode_id, second.episode_id] and first.episode_id != second.episode_id


def test_the_agent_foresees_from_the_state_before_the_wrong_action() -> None:
    agent = Echo()
    fatal = case()
    (found,) = foresee([fatal], AgentReflector(agent, Prompt(instruction="Play well.")))
    assert found == Reflection(text="Case 0 was wrong.", source="agent:echo")
    (asked,) = agent.seen
    before = dataclasses.replace(fatal.history, steps=fatal.history.steps[:-1])
    assert asked.messages[:-1] == before.messages(Prompt(instruction="Play well."))[:-1]
    assert fatal.wrong.observation not in "".join(m.content for m in asked.messages)
    question = asked.messages[-1].content
    assert fatal.right_action in question and fatal.wrong.action in question
    assert agent.released == [asked.episode_id]


def test_an_agent_that_needs_a_world_cannot_reflect() -> None:
    class Expert(Echo):
        needs: frozenset[Need] = frozenset({"expert_action"})

    with pytest.raises(ConfigError, match="template"):
        AgentReflector(Expert())


def test_reflectors_are_found_by_name() -> None:
    assert reflectors.get("template") is TemplateReflector
    assert reflectors.get("agent") is AgentReflector
