"""vLLM as an engine: continuous batching and prefix caching on a GPU, in this process.

Written to the interface that vLLM documents (0.11 and later): ``EngineArgs``, ``LLMEngine``, ``SamplingParams``.
Names of vLLM are in this file only.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from steca_gym.errors import AgentError, ConfigError

from .base import Completion, Row, why_refused


def require_vllm() -> Any:
    """The module vllm; raises ConfigError with the extra where it is not installed."""
    try:
        import vllm  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "agent=vllm needs vLLM, which is not installed (or not usable here: "
            f"{' '.join(str(error).split())[:200]}); run: pip install 'steca-gym[vllm]'"
        ) from error
    return vllm


def make_llm_engine(arguments: Mapping[str, Any]) -> Any:
    """A vLLM engine; raises ConfigError for arguments that it does not take, AgentError where it cannot start."""
    vllm = require_vllm()
    try:
        made = vllm.EngineArgs(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"vLLM refuses its settings: {' '.join(str(error).split())[:400]}") from error
    try:
        return vllm.LLMEngine.from_engine_args(made)
    except Exception as error:  # no GPU, too little memory, an architecture that it does not know
        raise AgentError(
            f"vLLM cannot start with {arguments.get('model')!r}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error


class VLLMEngine:
    """Decodes rows with a vLLM engine.

    Rows are sampled with a seed of their own, made from the row's seed and turn. vLLM does not promise that a sample is
    independent of the batch around it unless its batch invariance is switched on.

    Args:
        engine: a ``vllm.LLMEngine``, or anything that answers like one.
        stop_ids: ids that end a turn.
        vocabulary: rows of the model's embeddings.
        max_tokens: tokens that a row may have, prompt and new ones together.
    """

    name = "vllm"

    def __init__(self, engine: Any, *, stop_ids: frozenset[int], vocabulary: int, max_tokens: int) -> None:
        """See the class."""
        self.engine = engine
        self.stop_ids = stop_ids
        self.vocabulary, self.max_tokens = vocabulary, max_tokens
        self.model_seconds = 0.0
        self._sampling_params: Any = require_vllm().SamplingParams
        self._rows: dict[str, tuple[str, Row]] = {}
        """key and row of each request under way, by vLLM's id"""
        self._failed: list[tuple[str, Completion | Exception]] = []
        self._count = 0

    # -- Engine --------------------------------------------------------------------------------------------

    def submit(self, key: str, row: Row) -> None:
        """Queue a row."""
        error = why_refused(row, vocabulary=self.vocabulary, max_tokens=self.max_tokens, holder="vLLM (max_model_len)")
        if error is None and row.forced is not None:
            error = AgentError("vLLM cannot be made to return given ids; measure with agent=transformers")
        if error is not None:
            self._failed.append((key, error))
            return
        self._count += 1
        request = f"{self._count}"
        params = self._sampling_params(
            temperature=row.temperature,
            top_p=row.top_p,
            seed=sample_seed(row),
            max_tokens=row.max_new_tokens,
            stop_token_ids=sorted(self.stop_ids),
            ignore_eos=True,  # the ids that end a turn are all in stop_token_ids
            logprobs=0 if row.logprobs else None,  # 0: of the sampled ids alone
            detokenize=False,
        )
        self._rows[request] = (key, row)
        try:
            self.engine.add_request(request, {"prompt_token_ids": list(row.prompt)}, params)
        except (ValueError, TypeError) as refused:
            del self._rows[request]
            self._failed.append((key, AgentError(f"vLLM refuses a row: {' '.join(str(refused).split())[:400]}")))

    def poll(self) -> list[tuple[str, Completion | Exception]]:
        """Step until a row is done."""
        done: list[tuple[str, Completion | Exception]]
        done, self._failed = self._failed, []
        while not done and self._rows:
            if not self.engine.has_unfinished_requests():
                done = [(key, AgentError("vLLM dropped a row without an answer")) for key, _ in self._rows.values()]
                self._rows.clear()
                break
            begun = time.perf_counter()
            try:
                outputs = self.engine.step()
            except Exception as error:  # the engine's process is gone, the GPU ran out of memory
                line = f"vLLM stopped: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
                done = [(key, AgentError(line)) for key, _ in self._rows.values()]
                self._rows.clear()
                break
            finally:
                self.model_seconds += time.perf_counter() - begun
            for output in outputs:
                if output.finished and output.request_id in self._rows:
                    key, row = self._rows.pop(output.request_id)
                    done.append((key, self._completion(output, row)))
        return done

    def release(self, keys: Iterable[str]) -> None:
        """Drop the rows of these keys. vLLM's prefix cache lets go of what it read for them when it needs the place."""
        gone = set(keys)
        requests = [request for request, (key, _) in self._rows.items() if key in gone]
        if requests:
            self.engine.abort_request(requests)
        for request in requests:
            del self._rows[request]
        self._failed = [item for item in self._failed if item[0] not in gone]

    def clear(self) -> None:
        """Drop every row and empty the prefix cache."""
        self.release([key for key, _ in self._rows.values()])
        self._failed.clear()
        self.engine.reset_prefix_cache()

    def weights_changed(self) -> None:
        """Empty the prefix cache."""
        self.engine.reset_prefix_cache()

    # -- inside --------------------------------------------------------------------------------------------

    def _completion(self, output: Any, row: Row) -> Completion | AgentError:
        answer = output.outputs[0]
        tokens = tuple(int(t) for t in answer.token_ids)
        if answer.finish_reason not in ("stop", "length"):
            return AgentError(f"vLLM ended a row with {answer.finish_reason!r}")
        log_probs: tuple[float, ...] | None = None
        if row.logprobs:
            if answer.logprobs is None or len(answer.logprobs) != len(tokens):
                return AgentError("vLLM returned no log-probabilities; is max_logprobs set to 0?")
            log_probs = tuple(float(found[token].logprob) for token, found in zip(tokens, answer.logprobs, strict=True))
        stop = tokens[-1] if answer.finish_reason == "stop" and tokens and tokens[-1] in self.stop_ids else None
        end = len(tokens) - (stop is not None)
        reused = int(output.num_cached_tokens or 0)
        return Completion(
            tokens=tokens[:end],
            stop_token=stop,
            num_read=len(row.prompt) - reused,
            num_reused=reused,
            log_probs=None if log_probs is None else log_probs[:end],
            stop_log_prob=None if log_probs is None or stop is None else log_probs[-1],
        )


def sample_seed(row: Row) -> int:
    """A seed in [0, 2**63) from a row's seed and turn."""
    text = f"{row.seed}/{row.turn}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
