"""A reflector whose reflections are written by a chat endpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from steca_gym.agents.openai.endpoint import Endpoint, make_endpoint

from steca_gym.agent import Message, Prompt, Sampling
from steca_gym.calibration.records import Reflection
from steca_gym.calibration.reflection import (
    ReflectionCase,
    clean_reflection,
    foresight_messages,
    reflection_messages,
)


class OpenAIReflector:
    """Reflections from an endpoint; see OpenAIAgent for the arguments."""

    def __init__(
        self,
        base_url: str = "",
        model: str = "",
        *,
        endpoint: Endpoint | None = None,
        prompt: Prompt | None = None,
        temperature: float = 0.0,
        max_new_tokens: int = 96,
        **options: Any,
    ) -> None:
        """See the class."""
        self.endpoint = make_endpoint(base_url, model, endpoint, options)
        self.name = f"openai:{self.endpoint.settings.model}"
        self.batch_size = self.endpoint.settings.max_in_flight
        self._prompt = prompt or Prompt()
        self._sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)

    def reflect(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """One reflection per case, in order."""
        return self._ask([reflection_messages(case, self._prompt) for case in cases])

    def foresee(self, cases: Sequence[ReflectionCase]) -> list[Reflection]:
        """One thought before a fatal action per case, in order."""
        return self._ask([foresight_messages(case, self._prompt) for case in cases])

    def _ask(self, conversations: Sequence[tuple[Message, ...]]) -> list[Reflection]:
        answers = self.endpoint.complete([(messages, self._sampling, 0) for messages in conversations])
        return [Reflection(text=clean_reflection(a.text), source=self.name) for a in answers]
