"""Check what an endpoint sent, and quote it safely.

An answer is checked once, here. The API key is removed from everything that is quoted from a server.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steca_gym.redaction import redact
from steca_gym.turns import join_calls

_MAX_TOKENS_COUNTED = 1 << 31


@dataclass(frozen=True, slots=True)
class Completion:
    """An endpoint's answer."""

    text: str
    num_prompt_tokens: int
    num_cached_tokens: int
    num_sampled_tokens: int
    truncated: bool = False
    """the server stopped at the maximum number of new tokens"""
    token_ids: tuple[int, ...] | None = None
    """the sampled ids without the end-of-turn mark; None where the server does not tell them, or not all of the turn"""
    log_probs: tuple[float, ...] | None = None
    """one for each of ``token_ids``"""
    end_log_prob: float | None = None
    """of the end-of-turn mark"""


class MalformedAnswer(ValueError):
    """An answer that is no chat completion."""


def read_completion(raw: bytes) -> Completion:
    """Check an answer; raises MalformedAnswer where it is no chat completion."""
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer(f"not JSON: {error}; it begins {raw[:200].decode('utf-8', 'replace')!r}") from None
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"expected a JSON object, got {type(answer).__name__}")
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise MalformedAnswer(f"no choices in {raw[:200].decode('utf-8', 'replace')!r}")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise MalformedAnswer("choices[0].message must be an object")
    text = _content(message.get("content"))
    calls = message.get("tool_calls")
    if isinstance(calls, list) and calls:
        text = join_calls(text, [_tool_call(call) for call in calls])
    usage = answer.get("usage")
    if usage is not None and not isinstance(usage, dict):
        raise MalformedAnswer(f"usage must be an object or null, got {type(usage).__name__}")
    usage = usage or {}
    details = usage.get("prompt_tokens_details")
    if details is not None and not isinstance(details, dict):
        raise MalformedAnswer("usage.prompt_tokens_details must be an object or null")
    # A server that reports no usage is counted by words, which is a lower bound.
    truncated = choices[0].get("finish_reason") == "length"
    token_ids, log_probs, end_log_prob = _tokens(choices[0], message, truncated)
    return Completion(
        text=text,
        num_prompt_tokens=_count(usage, "prompt_tokens", 0),
        num_cached_tokens=_count(details or {}, "cached_tokens", 0),
        num_sampled_tokens=_count(usage, "completion_tokens", len(text.split())),
        truncated=truncated,
        token_ids=token_ids,
        log_probs=log_probs,
        end_log_prob=end_log_prob,
    )


def _tokens(
    choice: Mapping[str, Any], message: Mapping[str, Any], truncated: bool
) -> tuple[tuple[int, ...] | None, tuple[float, ...] | None, float | None]:
    """The sampled ids, their log-probabilities and that of the end mark, as vLLM tells them.

    vLLM's ``choices[0].token_ids`` holds every sampled id; in a finished turn the last one is the end-of-turn mark,
    which the text leaves out. ``choices[0].logprobs.content`` has one entry for each of them. Ids that hold more than
    the message (reasoning that the server took out, a stop string) are of no use: they are not the turn.
    """
    ids = choice.get("token_ids")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < _MAX_TOKENS_COUNTED for i in ids):
        return None, None, None
    if reasoning or isinstance(choice.get("stop_reason"), str) or (not truncated and not ids):
        return None, None, None
    told = choice.get("logprobs")
    entries = told.get("content") if isinstance(told, dict) else None
    listed: list[Any] = entries if isinstance(entries, list) else []
    numbers: list[Any] = [entry.get("logprob") if isinstance(entry, dict) else None for entry in listed]
    known = len(numbers) == len(ids) and all(type(x) in (int, float) and -math.inf < x <= 1e-3 for x in numbers)
    log_probs = tuple(float(x) for x in numbers) if known else None
    if truncated:
        return tuple(ids), log_probs, None
    return tuple(ids[:-1]), log_probs and log_probs[:-1], log_probs[-1] if log_probs else None


def _content(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(p, dict) and p.get("type") == "text" and isinstance(p.get("text"), str) for p in content
    ):
        return "".join(part["text"] for part in content)
    raise MalformedAnswer("choices[0].message.content must be a string, null or a list of text parts")


def _tool_call(call: Any) -> tuple[Any, Any]:
    """Name and arguments of a tool call that the server has parsed."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise MalformedAnswer("tool_calls must be a list of objects with a function")
    return function.get("name"), function.get("arguments")


def _count(usage: Mapping[str, Any], name: str, default: int) -> int:
    value = usage.get(name)
    if value is None:
        return default
    if type(value) is not int or not 0 <= value < _MAX_TOKENS_COUNTED:
        raise MalformedAnswer(f"usage.{name} must be a whole number >= 0, got {repr(value)[:40]}")
    return value


def one_line(raw: bytes, key: str) -> str:
    """The beginning of what a server said on one line, without the key in any of the forms that it may come back in."""
    text = redact(raw.decode("utf-8", "replace"), known=[key] if key else [])
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]


def advice(raw: bytes) -> str:
    """What to do about a request that a server refused."""
    if b"max_tokens" in raw or b"max_completion_tokens" in raw:
        return "set max_tokens_field (e.g. max_completion_tokens, or empty to leave it out)"
    if b"tool" in raw:
        return "let the server call functions (vLLM: --enable-auto-tool-choice), or use turn_format=json"
    return "check model and settings"
