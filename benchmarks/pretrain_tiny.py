"""Pretrain the tiny Llama so that it can read, copy names and numbers, and search: the weights of ``agent=tiny``.

    torchrun --nproc_per_node 2 benchmarks/pretrain_tiny.py --out runs/pretrain-tiny   # hours on two cores
    torchrun --nproc_per_node 2 benchmarks/pretrain_tiny.py --out runs/pretrain-tiny   # after a kill: continues
    python benchmarks/pretrain_tiny.py --out runs/pretrain-tiny --export agents/weights/tiny   # ship the last checkpoint

What it reads is made here (``_pretraining_texts``): drills in copying and looking up, then renamed household games
played by the searching expert. No official game and no evaluation game is read. Rows are a function of the seed and
the step, lengths are fixed, so the same command gives the same weights on the same machine, with as many processes.

The tokenizer is made once (``--make-tokenizer``) and kept with the weights; a run reads the one that is shipped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from steca_gym.agents.searching import SearchingAgent
from steca_gym.agents.searching.places import read_places
from steca_gym.agents.tiny import make_tokenizer
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parent))
import _pretraining_texts as texts  # noqa: E402
from _machine import machine_line  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "agents" / "weights" / "tiny"
MAX_POSITION = 16 * 1024
SIZES = {"num_layers": 3, "hidden_size": 256, "num_heads": 4, "intermediate_size": 512, "rope_theta": 500_000.0}
VOCAB_SIZE = 3072


# -- tokenizer ---------------------------------------------------------------------------------------------


def tokenizer_corpus() -> Iterator[tuple[str, str]]:
    """(source, text): English prose, names of the worlds, drills and games."""
    import pydoc_data.topics

    yield "Python's reference (pydoc_data.topics, PSF licence)", "\n".join(pydoc_data.topics.topics.values())
    pages = sorted([ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")])
    yield "this repository's pages", "\n".join(page.read_text() for page in pages)
    names = sorted({kind for table in read_places().tables for kind in (*table.rooms, *table.holds)} | set(texts.NOUNS))
    yield "names of objects and furniture", "\n".join(f"a {n} 1, the {n} 2. {n} 3 {n}\n" * 60 for n in names)
    rng, agent = random.Random(0), SearchingAgent()
    words = [*names, *texts.NOUNS]
    yield "drills", "\n".join(p for d in texts.DRILLS for _ in range(40) for p, _ in d(rng, words).pieces)
    games = [texts.game(rng, agent) for _ in range(120)]
    yield "renamed games", "\n".join(text for said in games for _, text, _ in said)


def tokenizer(folder: Path, *, remake: bool) -> Any:
    """The tokenizer that is shipped; made first where there is none."""
    if remake or not (folder / "tokenizer.json").exists():
        corpus = list(tokenizer_corpus())
        made = make_tokenizer(
            (text for _, text in corpus), vocab_size=VOCAB_SIZE, model_max_length=MAX_POSITION, split_digits=True
        )
        folder.mkdir(parents=True, exist_ok=True)
        made.save_pretrained(folder)
        digests = {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in corpus}
        (folder / "tokenizer_sources.json").write_text(json.dumps(digests, indent=1) + "\n")
    return AutoTokenizer.from_pretrained(folder)


def whole_words(encoder: Any) -> list[str]:
    """Words that are one token after a blank: what the drills are about."""
    found = [piece[1:] for piece in encoder.get_vocab() if piece.startswith("Ġ") and piece[1:].isalpha()]
    return sorted(w for w in found if len(w) >= 3 and w.isascii())


# -- rows --------------------------------------------------------------------------------------------------


class Rows:
    """Rows of token ids with their weights in the loss, by step."""

    def __init__(self, encoder: Any, seed: int, warm_steps: int, any_names_from: int) -> None:
        self.encoder, self.seed, self.warm_steps, self.any_names_from = encoder, seed, warm_steps, any_names_from
        self.agent = SearchingAgent()
        self.words = whole_words(encoder)
        places = read_places().tables
        taken = {kind for table in places for kind in (*table.rooms, *table.holds)} | texts.GRAMMAR
        self.names = [w for w in self.words if w.islower() and w not in taken]
        self.user = encoder.convert_tokens_to_ids("<|user|>")

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Ids, weights and positions, each of shape (rows, length); 2,048 tokens over all processes."""
        if step < self.warm_steps:
            shape, share_of_games = (16, 128), 0.0
        else:
            shape, share_of_games = ((2, 1024) if step % 4 == 0 else (4, 512)), 0.8
        ids, weights, positions = [], [], []
        for row in range(rank, shape[0], world):
            rng = random.Random(f"{self.seed}/{step}/{row}")
            names = self.names if step >= self.any_names_from else None
            i, w = self._row(rng, shape[1], rng.random() < share_of_games, names)
            ids.append(i)
            weights.append(w)
            positions.append(self._positions(rng, i))
        return torch.tensor(ids), torch.tensor(weights), torch.tensor(positions)

    def _row(
        self, rng: random.Random, length: int, games: bool, names: Sequence[str] | None
    ) -> tuple[list[int], list[float]]:
        ids: list[int] = []
        weights: list[float] = []
        # Drills are about few words at a time, so that a text has to be read rather than guessed.
        words = rng.sample(self.words, rng.choice((60, 400, len(self.words))))
        drill = rng.choice(texts.DRILLS)
        while len(ids) < length:
            text = texts.game_text(rng, self.agent, names) if games else drill(rng, words)
            for (_, weight), encoded in zip(text.pieces, self._encode([p for p, _ in text.pieces]), strict=True):
                ids += encoded
                weights += [weight] * len(encoded)
        return ids[:length], weights[:length]

    def _encode(self, pieces: Sequence[str]) -> list[list[int]]:
        return self.encoder(list(pieces), add_special_tokens=False)["input_ids"]

    def _positions(self, rng: random.Random, ids: Sequence[int]) -> list[int]:
        # Longer conversations than a row: some rows have gaps between messages, so that far distances are met.
        gap = rng.choice((0, 0, 0, 20, 100)) if len(ids) > 128 else 0
        position = rng.randrange(64)
        found = []
        for i in ids:
            if gap and i == self.user:
                position += rng.randint(0, gap)
            found.append(position)
            position += 1
        return found


# -- model -------------------------------------------------------------------------------------------------


def new_model(encoder: Any, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(encoder),
            hidden_size=SIZES["hidden_size"],
            intermediate_size=SIZES["intermediate_size"],
            num_hidden_layers=SIZES["num_layers"],
            num_attention_heads=SIZES["num_heads"],
            num_key_value_heads=SIZES["num_heads"],
            max_position_embeddings=MAX_POSITION,
            rope_parameters={"rope_type": "default", "rope_theta": SIZES["rope_theta"]},
            initializer_range=0.02,
            tie_word_embeddings=True,
            pad_token_id=encoder.pad_token_id,
            bos_token_id=None,
            eos_token_id=encoder.eos_token_id,
            attn_implementation="sdpa",
        )
    )
    with torch.no_grad():
        start_with_induction(model)
    return model


def start_with_induction(model: LlamaForCausalLM) -> None:
    """Initial weights near a circuit that copies: a head that reads the token before, and one that looks it up.

    Heads of this kind ("induction heads", Olsson et al. 2022, arXiv 2209.11895) form by themselves, but late; weights
    that begin near them (in the spirit of mimetic initialization, Trockman and Kolter 2023, arXiv 2305.09828) save most
    of the time that two cores have. Training changes all of them.
    """
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    half = size // 2
    generator = torch.Generator().manual_seed(0)
    embedding = model.model.embed_tokens.weight
    basis = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    # One direction is the same in all tokens: by it a head can point at a distance, whatever stands there.
    constant = basis[:, 0]
    embedding -= torch.outer(embedding @ constant, constant)
    embedding *= 0.06 / embedding.std()
    embedding += 0.5 * constant
    rms = embedding.pow(2).mean(1).sqrt().mean()
    level = float(0.5 / rms)  # of the constant after the norm
    frequency = 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(half) / half))
    read, write = basis[:, 1 : 1 + size], basis[:, 1 + size : 1 + 2 * size]
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    # The head that reads the token before: keys are the constant, queries the constant turned by one position.
    sharp = torch.exp(-torch.arange(half) / 6.0)
    amplitude = 4.5 / level * torch.sqrt(sharp) * size**0.25
    first.k_proj.weight[:size] = torch.cat([amplitude, torch.zeros(half)])[:, None] * constant
    first.q_proj.weight[:size] = (
        torch.cat([amplitude * torch.cos(frequency), -amplitude * torch.sin(frequency)])[:, None] * constant
    )
    first.v_proj.weight[:size] = read.T
    first.o_proj.weight[:, :size] = 0.06 * write
    # The head that looks up: what stood before there is what stands here; it copies what stands there.
    slow = (frequency * 300 < 1).float()
    keep = torch.cat([slow, slow])
    scale = 2.0 * keep[:, None]
    second.q_proj.weight[:size] = scale * read.T
    second.k_proj.weight[:size] = scale * write.T * 1.5
    copy = basis[:, 1 + 2 * size : 1 + 3 * size]
    second.v_proj.weight[:size] = copy.T
    second.o_proj.weight[:, :size] = 0.36 * copy


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Weighted sum of the cross entropy; logits are made only where a weight is."""
    hidden = model.model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    targets, weights = ids[:, 1:], weights[:, 1:]
    chosen = weights > 0
    logits = functional.linear(hidden[:, :-1][chosen], model.model.embed_tokens.weight)
    each = functional.cross_entropy(logits, targets[chosen], reduction="none")
    return (each * weights[chosen]).sum()


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonal updates (Jordan et al. 2024, "Muon"), in float32.

    ``torch.optim.Muon`` orthogonalizes in bfloat16, which processors without such products take ten times as long for.
    """

    def __init__(self, params: Any, *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(weight.grad.lerp(average, group["momentum"]))
                scale = max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5
                weight.add_(update, alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with singular values about 1, by five Newton-Schulz steps."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


def optimizers_of(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and the norms; rates are set at each step."""
    inside = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if not any(p is q for q in inside)]
    return [Muon(inside, lr=0.0), torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def mean_gradient(model: LlamaForCausalLM, batch: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> float:
    """Add the gradient of the weighted mean over all processes' rows; returns the mean."""
    total = batch[1][:, 1:].sum()
    if dist.is_initialized():
        dist.all_reduce(total)
    loss = loss_of(model, *batch) / total
    loss.backward()
    loss = loss.detach()
    if dist.is_initialized():
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients] + [loss[None]])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat[:-1].split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        loss = flat[-1]
    return loss.item()


def rate(step: int, cycles: Sequence[int], peak: float) -> float:
    """Cycles of the given numbers of steps, each with a warm-up, a constant part, and a linear end over its last quarter."""
    for num_steps in cycles:
        if step < num_steps:
            return peak * min(1.0, (step + 1) / 50, max(0.02, (num_steps - step) / (0.25 * num_steps)))
        step -= num_steps
    raise ValueError(f"step is {step + 1} past the last cycle")


# -- checkpoints -------------------------------------------------------------------------------------------


def save(path: Path, step: int, model: torch.nn.Module, optimizers: Sequence[Any], settings: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    kept = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(kept | {"settings": settings}, part)
    os.replace(part, path)


def export(model: LlamaForCausalLM, encoder: Any, folder: Path, provenance: dict[str, Any]) -> None:
    """Weights in 16 bits, configuration, tokenizer, where they come from, and a checksum of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlamaForCausalLM(model.config)
    half.load_state_dict(model.state_dict())
    half.half().save_pretrained(folder)
    if not (folder / "tokenizer.json").exists():
        encoder.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "provenance.json").write_text(json.dumps(provenance, indent=1, sort_keys=True) + "\n")
    files = sorted(
        p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".jinja") and p.name != "sha256.json"
    )
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
    (folder / "sha256.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")
    print(f"{sum(p.stat().st_size for p in folder.iterdir()) / 1e6:.2f} MB in {folder}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and log.jsonl")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--cycles",
        type=int,
        nargs="+",
        default=[3000, 2400, 3600],
        help="optimizer steps of 2,048 tokens in each cycle of the learning rate; from the second on, any word of the"
        " vocabulary may name a thing",
    )
    parser.add_argument("--warm-steps", type=int, default=60, help="first steps, on short drills only")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="of the embedding and the norms (AdamW)")
    parser.add_argument("--muon-rate", type=float, default=0.005, help="of the matrices inside the layers (Muon)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=20, help="steps")
    parser.add_argument("--keep-every", type=int, default=200, help="steps; such checkpoints are kept")
    parser.add_argument("--log-every", type=int, default=10, help="steps")
    parser.add_argument("--export", type=Path, help="write the last checkpoint there and stop")
    parser.add_argument("--make-tokenizer", action="store_true", help="make the shipped tokenizer again")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    args.out.mkdir(parents=True, exist_ok=True)
    encoder = tokenizer(WEIGHTS, remake=args.make_tokenizer)
    named = ("seed", "cycles", "warm_steps", "learning_rate", "muon_rate", "threads")
    settings = {name: getattr(args, name) for name in named} | SIZES
    model = new_model(encoder, args.seed)
    optimizers = optimizers_of(model)
    latest, step = args.out / "latest.pt", 0
    if latest.exists():
        kept = torch.load(latest, weights_only=True)
        step = kept["step"]
        model.load_state_dict(kept["model"])
        for optimizer, state in zip(optimizers, kept["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    if args.export:
        drills = [d.__name__ for d in texts.DRILLS]
        provenance = {
            "made_by": "benchmarks/pretrain_tiny.py",
            "settings": settings,
            "num_steps_done": step,
            "num_tokens_read": step * 2048,
            "texts": {
                "drills": drills,
                "games": "generated Household rooms (seeds from 1,000,000,007), all names replaced (in the first cycle by"
                " NOUNS, then by any word of the vocabulary that names nothing in ALFWorld), searching expert",
                "official_games": "none",
                "evaluation_games": "none",
            },
            "tokenizer_sources": json.loads((WEIGHTS / "tokenizer_sources.json").read_text()),
            "machine": machine_line("torch", "transformers", "tokenizers"),
            "licence": "Apache-2.0, as this package",
        }
        if args.export.resolve() != WEIGHTS:
            shutil.copytree(WEIGHTS, args.export, dirs_exist_ok=True)
        export(model, encoder, args.export, provenance)
        return
    rows = Rows(encoder, args.seed, args.warm_steps, any_names_from=args.cycles[0])
    total_steps = sum(args.cycles)
    model.train()
    started = time.perf_counter()
    losses: list[float] = []
    while step < total_steps:
        for optimizer, peak in zip(optimizers, (args.muon_rate, args.learning_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate(step, args.cycles, peak)
        loss = mean_gradient(model, rows.batch(step, rank, world))
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(loss)
        if rank == 0 and (step % args.log_every == 0 or step == total_steps):
            line = {"step": step, "loss": round(sum(losses) / len(losses), 4), "norm": round(norm.item(), 2)}
            line |= {"seconds": round(time.perf_counter() - started, 1)}
            with (args.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            print(line, flush=True)
            losses.clear()
        if rank == 0 and (step % args.save_every == 0 or step == total_steps):
            save(latest, step, model, optimizers, settings)
        if rank == 0 and step % args.keep_every == 0:
            shutil.copyfile(latest, args.out / f"step-{step}.pt")


if __name__ == "__main__":
    main()
