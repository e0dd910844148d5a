"""Reflection: the thought that notices a wrong action and leads to the right one.

Here are the protocol, the template and the agent's own reflector; one that asks an endpoint is in ``agents.openai``.
"""

from __future__ import annotations

import bisect
import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from steca_gym.agent import (
    Agent,
    Message,
    Prompt,
    Sampling,
    TurnFormat,
    TurnRequest,
    check_turns,
    find_turn_format,
)
from steca_gym.calibration.records import Reflection
from steca_gym.errors import ConfigError
from steca_gym.registry import reflectors
from steca_gym.step_rewards.values import derive_seed
from steca_gym.trajectory import Step, Trajectory
from steca_gym.turns import without_reasoning

MAX_REFLECTION_WORDS = 60
"""longer reflections of a model are cut, at the end of a sentence if possible; see ``count_words``"""

_LETTERS_PER_WORD = 24
_UNSPACED_PER_WORD = 2
# Scripts that are written without blanks: Thai, Lao, Myanmar, Khmer, Tibetan; kana, CJK (with extensions), full width.
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)

INSTRUCTION = (
    "Your last action was a mistake: it does not lead to the goal. The right next action is: {action}\n"
    "Write the thought, in the first person and in at most two sentences, that notices from the last "
    "observation why the last action was wrong and concludes that this next action is right. "
    "Answer with the thought alone."
)
"""what a model is asked; the conversation up to the wrong action stands before it"""

FORESIGHT_INSTRUCTION = (
    "The right next action is: {action}\n"
    "A tempting action that must not be taken here, because nothing could make up for it, is: {wrong}\n"
    "Write the thought, in the first person and in at most two sentences, that concludes from what you have seen that "
    "the right action comes next and the tempting one would be a mistake. Answer with the thought alone."
)
"""what a model is asked before a fatal action; the conversation up to that state stands before it"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReflectionCase:
    """What a reflector is given."""

    history: Trajectory
    """up to the wrong turn and the world's answer to it"""
    right_action: str
    """a_t: the action that the reflection leads to"""
    expert_thought: str = ""
    """the expert's own reason for it, empty where it gives none"""

    @property
    def wrong(self) -> Step:
        """The wrong turn."""
        return self.history.steps[-1]


class Reflector(Protocol):
    """Writes reflections.

    ``batch_size`` is the preferred number of cases per call; fewer may come. An empty text means that no reflection
    could be written; a reflector that cannot work at all raises AgentError.
    """

    name: str
    batch_size: int

    def reflect(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """One reflection per case, in order."""
        ...


class ExpertThoughtReflector:
    """The expert's own thought for the right action, without a word on the mistake: the ablation without reflections.

    For an expert that gives no thought it is "I should" and the right action.
    """

    name = "expert_thought"
    batch_size = 1

    def reflect(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """See the class."""
        return [Reflection(text=self._text(case), source=self.name) for case in cases]

    # Before a fatal action the expert's thought is the same.
    foresee = reflect

    @staticmethod
    def _text(case: ReflectionCase) -> str:
        return _without_notice(case.expert_thought) or f"I should {case.right_action}."


_UNREADABLE, _INVALID, _FUTILE, _WRONG = _NOTICES = (
    "that was no action.",
    "nothing happened.",
    "that changed nothing.",
    "that was wrong.",
)


class TemplateReflector:
    """A sentence made of the two actions and the observation: what was tried, what was seen, what to do instead.

    Needs no model and gives the same text every time. It has at most 16 words (see ``count_words``) from a small
    vocabulary, so that a small language model can learn to write it.
    """

    name = "template"
    batch_size = 1
    max_words = 16

    def reflect(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """See the class."""
        return [Reflection(text=self._text(case), source="template") for case in cases]

    def _text(self, case: ReflectionCase) -> str:
        wrong = case.wrong
        if not wrong.parsed:
            noticed = _UNREADABLE
        elif not wrong.valid or wrong.observation.strip().casefold() == "nothing happens.":
            noticed = _INVALID
        elif len(case.history) > 1 and wrong.observation == case.history.steps[-2].observation:
            noticed = _FUTILE
        else:
            noticed = _WRONG
        reason = _without_notice(case.expert_thought)
        ways = (
            f"{noticed} {reason}" if reason else "",
            f"{noticed} I should {case.right_action}." if case.right_action else "",
            f"{noticed} I should do something else.",
        )
        tried = "" if not wrong.parsed else f"{_short(wrong.action, 6)}: "
        for way in ways:
            for text in (tried + way, way):
                if way and count_words(text) <= self.max_words:
                    return text[:1].upper() + text[1:]
        return noticed


def _without_notice(thought: str) -> str:
    """A thought without an earlier notice: later rounds correct corrections, and notices would accumulate."""
    folded = thought.casefold()
    ends = (folded.rfind(notice) + len(notice) for notice in _NOTICES if notice in folded)
    return thought[max(ends, default=0) :].strip()


def _short(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def _weight(word: str) -> int:
    """How many words a stretch without blanks counts as."""
    unspaced = len(_UNSPACED.findall(word))
    return max(1, math.ceil(unspaced / _UNSPACED_PER_WORD + (len(word) - unspaced) / _LETTERS_PER_WORD))


def count_words(text: str) -> int:
    """Number of words, for limits on length in any script.

    A stretch without blanks is a word; in scripts that are written without blanks (Chinese, Japanese, Thai, ...) every
    two characters are one, and so are every 24 letters of a longer stretch.
    """
    return sum(map(_weight, text.split()))


def cut_words(text: str, max_words: int) -> str:
    """The beginning of a text with at most ``max_words`` words, up to the end of a sentence if one ends in there."""
    if count_words(text) <= max_words:
        return text
    kept: list[str] = []
    left = max_words
    for word in text.split():
        if _weight(word) > left:
            if left:  # a stretch of many words, such as a text in Chinese, is cut inside
                fits = bisect.bisect_right(range(len(word) + 1), left, key=lambda n: _weight(word[:n]))
                kept.append(word[: fits - 1])
            break
        kept.append(word)
        left -= _weight(word)
    short = " ".join(kept)
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|\Z)|[。！？]", short)]
    return short[: ends[-1]] if ends and 2 * ends[-1] >= len(short) else short


# Tags around a thought, which some models copy from other prompts.
_TAGS = re.compile(r"</?(?:thought|reflection|answer|thinking|response)>", re.IGNORECASE)


def clean_reflection(text: str, turn_format: TurnFormat | None = None) -> str:
    """A model's answer as one thought: without reasoning, labels and action, cut at MAX_REFLECTION_WORDS.

    What stands in ``<think>`` tags is not the reflection, also where only the closing tag or only the opening tag (the
    answer was cut off) is there. An answer without a thought gives an empty text.
    """
    answer = without_reasoning(text).strip()
    parsed = find_turn_format(turn_format).parse(answer)
    thought = parsed.thought
    if parsed.action is None:  # no turn, but perhaps a bare thought; not a turn of another format
        thought = "" if parsed.hint and thought in ("", answer) else thought or answer
    thought = _TAGS.sub(" ", thought)
    return cut_words(" ".join(thought.split()).strip("\"'` "), MAX_REFLECTION_WORDS)


def reflection_messages(case: ReflectionCase, prompt: Prompt) -> tuple[Message, ...]:
    """The conversation that asks a model for a reflection."""
    messages = case.history.messages(prompt)
    question = INSTRUCTION.format(action=case.right_action)
    return (*messages[:-1], Message("user", f"{messages[-1].content}\n\n{question}"))


def foresight_messages(case: ReflectionCase, prompt: Prompt) -> tuple[Message, ...]:
    """The conversation that asks a model for a thought before the fact: in it the wrong turn has not happened."""
    before = dataclasses.replace(case.history, steps=case.history.steps[:-1], trajectory_id="")
    messages = before.messages(prompt)
    question = FORESIGHT_INSTRUCTION.format(action=case.right_action, wrong=case.wrong.action or case.wrong.text)
    return (*messages[:-1], Message("user", f"{messages[-1].content}\n\n{question}"))


class AgentReflector:
    """The agent's own model writes the reflection (2 to 4 points below a stronger model, according to the paper).

    Args:
        agent: the agent.
        prompt: the environment's prompt.
        temperature: 0 is greedy.
        max_new_tokens: maximum number of tokens per reflection.
        batch_size: cases per call.
        turn_format: how the agent writes its turns; by default ``react``.
    """

    def __init__(
        self,
        agent: Agent,
        prompt: Prompt | None = None,
        *,
        temperature: float = 0.0,
        max_new_tokens: int = 64,
        batch_size: int = 16,
        turn_format: str | TurnFormat | None = None,
    ) -> None:
        """See the class."""
        if agent.needs:
            raise ConfigError(
                f"agent {agent.name!r} needs {', '.join(sorted(agent.needs))}: it cannot reflect; "
                "use the template reflector or an agent with a language model"
            )
        self.name = f"agent:{agent.name}"
        self.batch_size = batch_size
        self._agent, self._prompt = agent, prompt or Prompt()
        self._format = find_turn_format(turn_format)
        self._sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)

    def reflect(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """See the class."""
        return self._ask("reflect", cases, [reflection_messages(case, self._prompt) for case in cases])

    def foresee(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """Thoughts before fatal actions; see ``steca_gym.calibration.foresight``."""
        return self._ask("foresee", cases, [foresight_messages(case, self._prompt) for case in cases])

    def _ask(
        self, purpose: str, cases: Sequence[ReflectionCase], conversations: Sequence[tuple[Message, ...]]
    ) -> list[Reflection]:
        requests: list[TurnRequest] = []
        for case, messages in zip(cases, conversations, strict=True):
            seed = derive_seed(purpose, case.history.task_id, case.right_action, *case.history.actions)
            requests.append(
                TurnRequest(
                    episode_id=f"{purpose}-{seed:x}-{len(requests)}",
                    messages=messages,
                    seed=seed,
                    turn=0,
                    sampling=self._sampling,
                )
            )
        try:
            turns = check_turns(self._agent.act(requests), len(requests), self._agent.name)
        finally:
            self._agent.release([r.episode_id for r in requests])
        return [Reflection(text=clean_reflection(turn.text, self._format), source=self.name) for turn in turns]


reflectors.register("template", TemplateReflector)
reflectors.register("expert_thought", ExpertThoughtReflector)
reflectors.register("agent", AgentReflector)
