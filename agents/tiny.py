"""A small Llama-architecture language model: the pretrained one of this package, or one of any size from scratch.

The pretrained model has learnt to read, to copy names and numbers and to search (``benchmarks/pretrain_tiny.py``); its
tokenizer is fixed. A model from scratch has random weights and a tokenizer that is trained on the given texts.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from steca_gym.agent import Prompt
from steca_gym.errors import ConfigError, DataError, UnknownNameError
from steca_gym.registry import checked_by, explain_unknown
from steca_gym.training import TrainReport, TrainSettings, train
from steca_gym.training.quiet import quiet_transformers
from steca_gym.trajectory import Trajectory, WeightedTrajectory

PAD, END, USER, ASSISTANT, SYSTEM = "<|pad|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|system|>"

# Words keep the blank before them; numbers, line breaks and punctuation are pieces of their own. So an object's name is
# one token wherever it occurs, and its number is one token, or with split_digits one token for each digit.
_PIECES = r"\n| ?\p{N}+| ?\p{L}+| ?[^\s\p{L}\p{N}]|[^\S\n]+"
_PIECES_OF_DIGITS = r"\n| ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]|[^\S\n]+"

# One mark a message. Only the assistant's turn has an end mark: the next message's mark ends the others.
_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySettings:
    """Sizes of a model from scratch and of its vocabulary."""

    num_layers: int = 3
    hidden_size: int = 128
    """width; a multiple of ``num_heads``"""
    num_heads: int = 4
    intermediate_size: int | None = None
    """width of the feed-forward layers; None: three times the hidden size"""
    vocab_size: int = 2048
    """most tokens; fewer where the corpus has fewer words"""
    max_position_embeddings: int = 16384
    """most tokens of a conversation; costs nothing until they are used"""
    rope_theta: float = 10_000.0
    initializer_range: float = 0.05
    """standard deviation of the initial weights"""

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        for name in ("num_layers", "hidden_size", "num_heads", "vocab_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size must be a multiple of 2 * num_heads = {2 * self.num_heads} (rotary positions "
                f"turn pairs), got {self.hidden_size}"
            )
        if self.vocab_size < 262:
            raise ConfigError(f"vocab_size must be >= 262 (256 bytes and the marks), got {self.vocab_size}")


def weights_folder() -> Path:
    """The folder of the pretrained model that comes with the package."""
    return Path(str(files(__package__))) / "weights" / "tiny"  # pyright: ignore[reportArgumentType]


@lru_cache(maxsize=4)
def check_weights(folder: Path) -> None:
    """Compare the files of a shipped model with their checksums in ``sha256.json``.

    Raises:
        DataError: a file is missing or differs.
    """
    try:
        expected: dict[str, str] = json.loads((folder / "sha256.json").read_text())
        for name, digest in expected.items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                raise DataError(f"{name} in {str(folder)!r} is damaged: its checksum differs; reinstall the package")
    except (OSError, ValueError) as error:
        raise DataError(
            f"no pretrained tiny model in {str(folder)!r} ({error}); reinstall the package, or train from scratch with "
            "agent.build.from_scratch=true"
        ) from error


def check_settings(*, from_scratch: bool | None = None, **sizes: Any) -> None:
    """Raise ConfigError for sizes that do not fit, or that the pretrained model does not take."""
    given = {name: size for name, size in sizes.items() if size is not None}
    if given and from_scratch is False:
        names = ", ".join(given)
        raise ConfigError(f"{names}: the pretrained tiny model has its own sizes; set agent.build.from_scratch=true")
    unknown = [name for name in given if name not in TinySettings.__dataclass_fields__]
    if unknown:
        raise UnknownNameError(explain_unknown("size of a tiny model:", unknown[0], TinySettings.__dataclass_fields__))
    TinySettings(**given)


@checked_by(check_settings)
def build_tiny(
    corpus: Iterable[str] = (),
    output_dir: Path | str = "tiny",
    *,
    seed: int = 0,
    from_scratch: bool | None = None,
    settings: TinySettings | None = None,
    **changes: Any,
) -> Path:
    """Write the initial model and its tokenizer to ``output_dir``.

    With sizes it is a model from scratch: the same corpus, settings and seed give the same files. Without it is the
    pretrained model, in float32; corpus and seed change nothing then. Both tokenizers are lossless on any text: words
    that they do not have are split into bytes.

    Args:
        corpus: observations and turns, as they will be read; the tokenizer of a model from scratch is trained on them.
        output_dir: folder that transformers loads afterwards.
        seed: of the random initial weights.
        from_scratch: random weights, or the pretrained ones; None: from scratch where sizes are given.
        settings: sizes of a model from scratch.
        **changes: fields of the settings to override, e.g. ``num_layers=2``; None: the field's default.

    Raises:
        DataError: an empty corpus for a model from scratch; pretrained weights that are missing or damaged.
        ConfigError: an unknown field, sizes that do not fit, or sizes for the pretrained model.
    """
    changes = {name: value for name, value in changes.items() if value is not None}
    if from_scratch is None:
        from_scratch = bool(changes) or settings is not None
    if from_scratch:
        return _build_from_scratch(corpus, Path(output_dir), seed=seed, settings=settings, changes=changes)
    if changes or settings is not None:
        given = ", ".join(changes) or "settings"
        raise ConfigError(f"{given}: the pretrained tiny model has its own sizes; set agent.build.from_scratch=true")
    return copy_pretrained(weights_folder(), Path(output_dir))


def copy_pretrained(source: Path, folder: Path) -> Path:
    """Write a shipped model to another folder, its 16-bit weights as float32; raises DataError if it is damaged."""
    import torch
    from transformers import AutoModelForCausalLM

    check_weights(source)
    with quiet_transformers():
        # On disk the weights are in 16 bits; training needs more.
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, trust_remote_code=False)
        model.save_pretrained(folder)
    for file in sorted(source.iterdir()):
        if file.name.startswith("tokenizer") or file.suffix == ".jinja":
            shutil.copyfile(file, folder / file.name)
    return folder


def _build_from_scratch(
    corpus: Iterable[str], folder: Path, *, seed: int, settings: TinySettings | None, changes: dict[str, Any]
) -> Path:
    import dataclasses

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        sizes = dataclasses.replace(settings or TinySettings(), **changes)
    except TypeError as error:
        raise ConfigError(f"tiny model: {error}; see TinySettings") from error
    tokenizer = make_tokenizer(corpus, vocab_size=sizes.vocab_size, model_max_length=sizes.max_position_embeddings)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=sizes.hidden_size,
        intermediate_size=sizes.intermediate_size or 3 * sizes.hidden_size,
        num_hidden_layers=sizes.num_layers,
        num_attention_heads=sizes.num_heads,
        num_key_value_heads=sizes.num_heads,
        max_position_embeddings=sizes.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
        initializer_range=sizes.initializer_range,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        attention_dropout=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def tiny_warm_up_settings(**changes: Any) -> TrainSettings:
    """How a tiny model is trained from scratch (``docs/training.md`` says what was tried)."""
    defaults: dict[str, Any] = {
        "num_epochs": None if changes.get("max_steps") or changes.get("max_tokens") else 2,
        "per_device_batch_size": 8,
        "learning_rate": 2e-3,
        "adam_beta2": 0.95,
        "warmup_ratio": 0.05,
        "max_length": 2048,
    }
    return TrainSettings(**{**defaults, **changes})


def tiny_reinforced_settings(**changes: Any) -> TrainSettings:
    """How a warmed-up tiny model is trained on weighted trajectories: as the warm-up, at half the rate."""
    defaults = {
        "num_epochs": None if changes.get("max_steps") or changes.get("max_tokens") else 1,
        "learning_rate": 1e-3,
    }
    return tiny_warm_up_settings(**{**defaults, **changes})


def warm_up(
    experts: Sequence[Trajectory],
    output_dir: Path,
    *,
    prompt: Prompt,
    seed: int = 0,
    sizes: TinySettings | None = None,
    settings: TrainSettings | None = None,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> TrainReport:
    """Build a tiny model from scratch for the texts of expert trajectories and train it into ``report.model``.

    Raises what ``build_tiny`` and ``steca_gym.training.train`` raise.
    """
    texts = [message.content for expert in experts for message in expert.messages(prompt)]
    with tempfile.TemporaryDirectory() as scratch:
        return train(
            build_tiny(texts, scratch, seed=seed, from_scratch=True, settings=sizes),
            [WeightedTrajectory(trajectory=expert) for expert in experts],
            prompt=prompt,
            settings=settings or tiny_warm_up_settings(seed=seed),
            output_dir=output_dir,
            on_log=on_log,
        )


def make_tokenizer(corpus: Iterable[str], *, vocab_size: int, model_max_length: int, split_digits: bool = False) -> Any:
    """Train a byte-level BPE whose merges stay inside words, so that a common word is one token.

    Args:
        corpus: texts; words that are common in them become tokens.
        vocab_size: most tokens, bytes and marks included.
        model_max_length: tokens, written into the tokenizer's configuration.
        split_digits: one token for each digit of a number; else common numbers are one token.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = list(corpus)
    if not any(texts):
        raise DataError("a tokenizer needs texts, got none; pass the observations and turns of demonstrations")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES_OF_DIGITS if split_digits else _PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[PAD, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM],
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = _TEMPLATE
    return wrapped
