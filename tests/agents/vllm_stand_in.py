"""A stand-in for the package vllm: the part of its documented interface that ``agents/engines/vllm.py`` uses.

It decodes with a transformers model, one token of every request a step, and counts prompt tokens in a prefix cache of
16-token blocks as vLLM does. Requests carry vLLM's names; an argument that the real classes do not have is refused.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

BLOCK = 16


@dataclasses.dataclass
class EngineArgs:
    model: str
    dtype: str = "auto"
    max_num_seqs: int = 256
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.9
    seed: int = 0
    enable_prefix_caching: bool = True
    tensor_parallel_size: int = 1
    enforce_eager: bool = False

    def __post_init__(self) -> None:
        if self.tensor_parallel_size < 1:
            raise ValueError("tensor_parallel_size must be at least 1")


@dataclasses.dataclass
class SamplingParams:
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 16
    stop_token_ids: list[int] = dataclasses.field(default_factory=list)
    ignore_eos: bool = False
    logprobs: int | None = None
    detokenize: bool = True


@dataclasses.dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclasses.dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclasses.dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    num_cached_tokens: int | None = None


class LLMEngine:
    """Steps all requests by one token."""

    def __init__(self, args: EngineArgs) -> None:
        from transformers import AutoModelForCausalLM

        self.args = args
        self.model: Any = AutoModelForCausalLM.from_pretrained(args.model).eval()
        self.requests: dict[str, tuple[list[int], SamplingParams, torch.Generator, CompletionOutput, int]] = {}
        self.cached: set[tuple[int, ...]] = set()
        self.broken: Exception | None = None

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs) -> LLMEngine:
        return cls(engine_args)

    def add_request(self, request_id: str, prompt: dict[str, list[int]], params: SamplingParams) -> None:
        ids = prompt["prompt_token_ids"]
        if not ids:
            raise ValueError("The decoder prompt cannot be empty")
        if request_id in self.requests:
            raise ValueError(f"Request {request_id} already exists.")
        blocks = [tuple(ids[:n]) for n in range(BLOCK, len(ids), BLOCK)]  # the last token is always computed
        cached = 0
        for block in blocks:
            if block not in self.cached:
                break
            cached = len(block)
        self.cached.update(blocks)
        generator = torch.Generator().manual_seed(params.seed or 0)
        answer = CompletionOutput(0, "", [], None if params.logprobs is None else [])
        self.requests[request_id] = (ids, params, generator, answer, cached)

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    def abort_request(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self.requests.pop(request_id, None)

    def reset_prefix_cache(self) -> bool:
        self.cached.clear()
        return True

    @torch.no_grad()
    def step(self) -> list[RequestOutput]:
        if self.broken is not None:
            raise self.broken
        outputs = []
        running = list(self.requests.items())[: self.args.max_num_seqs]
        for request_id, (ids, params, generator, answer, cached) in running:
            logits = self.model(torch.tensor([[*ids, *answer.token_ids]])).logits[0, -1].float()
            if params.temperature == 0:
                token = int(logits.argmax())
            else:
                token = int(torch.multinomial(torch.softmax(logits / params.temperature, -1), 1, generator=generator))
            answer.token_ids.append(token)
            if answer.logprobs is not None:
                answer.logprobs.append({token: Logprob(float(torch.log_softmax(logits, -1)[token]))})
            if token in params.stop_token_ids:  # it stays in token_ids, as in vLLM
                answer.finish_reason, answer.stop_reason = "stop", token
            elif len(answer.token_ids) == params.max_tokens:
                answer.finish_reason = "length"
            finished = answer.finish_reason is not None
            if finished:
                del self.requests[request_id]
            outputs.append(RequestOutput(request_id, ids, [answer], finished, cached))
        return outputs
