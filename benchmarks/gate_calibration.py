"""What each gate costs and catches: false rejects and false accepts on labelled pairs.

    python benchmarks/gate_calibration.py --data FOLDER

Faithful pairs are human rewordings (STS-B from 4.5 upwards, SICK entailment from 4.5 upwards, captions of one Flickr8k
image) and what is labelled faithful in tests/data/faithfulness (its Flickr8k part is put together with the data set);
changed ones are STS-B up to 2, SICK contradictions, SugarCrepe's hard negatives, and what is labelled changed. A
*false reject* is a faithful pair that the gate stops, a *false accept* a changed pair that it lets through; a gate for
one sort of change lets the others through by design, so the last rows, where all are together, decide. Gates on form
(length, echo, overlap) are judged by the faithful pairs alone. The folder of real data is read and nothing of it kept.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flickr8k_pairs import read_pairs
from paraclip_core.paraphrase.similarity import SentenceEncoder

from paraclip_core.captions.clean import clean
from paraclip_core.captions.tokens import Tokenizer
from paraclip_core.config import GateOptions
from paraclip_core.paraphrase.gates import TEXT_GATES
from paraclip_core.paraphrase.meaning import MEANING_GATES, compared_texts
from paraclip_core.paraphrase.pair import Pair
from paraclip_core.paraphrase.prompts import FEW_SHOT

LABELLED = Path(__file__).parents[1] / "tests" / "data" / "faithfulness"
FORM = ("empty", "length_ratio", "too_long", "echo", "high_overlap")
WHOLE = Tokenizer(context_length=4096)


@dataclass(frozen=True)
class Group:
    """Pairs of one source that are all faithful, or all changed."""

    name: str
    faithful: bool
    pairs: Sequence[Pair]


def pair_of(caption: str, source: str, answer: str, step: int) -> Pair:
    """A pair as the generate loop builds it."""
    return Pair(clean(caption), clean(source), clean(answer), step, FEW_SHOT[step].examples, _pieces)


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of labelled pairs."""
    return [json.loads(line) for line in (LABELLED / name).read_text("utf-8").splitlines()]


def labelled(rows: Sequence[dict[str, Any]]) -> list[Group]:
    """All hand-labelled pairs by half and label, what the gates of that day rejected included."""
    groups = []
    for half, label in ((half, label) for half in ("tune", "held-out") for label in ("faithful", "changed")):
        pairs = [_labelled_pair(row) for row in rows if row["half"] == half and row["label"] == label]
        groups.append(Group(f"{half}, {label}", label == "faithful", pairs))
    return groups


def before_and_after(
    options: GateOptions, encoder: SentenceEncoder, photographs: Sequence[dict[str, Any]]
) -> Iterator[str]:
    """Share of faithful ones among what earlier gates kept and among what is kept of it now, as Markdown."""
    yield "| half | captions | step | kept before | faithful, % | kept now | faithful, % | faithful ones kept, % |"
    yield "|---|---|---|---|---|---|---|---|"
    rows = [*rows_of("pairs.jsonl"), *rows_of("fresh.jsonl"), *photographs]
    rows = [row for row in rows if row["gate"] is None]
    hits = stopped([Group("kept", True, [_labelled_pair(row) for row in rows])], options, encoder)
    passes = ~np.any([hit[0] for hit in hits.values()], axis=0)
    faithful = np.array([row["label"] == "faithful" for row in rows])
    keys = [(row["half"], row["kind"], row["step"]) for row in rows]
    for half, kind, step in sorted(set(keys), key=lambda key: (key[0] != "tune", key[0] != "held-out", key[1:])):
        here = np.array([key == (half, kind, step) for key in keys])
        now = here & passes
        first = "– | –" if half == "fresh" else f"{here.sum()} | {100 * faithful[here].mean():.0f}"
        last = "–" if half == "fresh" else f"{100 * passes[here & faithful].mean():.0f}"
        yield f"| {half} | {kind} | {step} | {first} | {now.sum()} | {100 * faithful[now].mean():.0f} | {last} |"


def real(folder: Path, most: int) -> Iterator[Group]:
    """Groups of human-written pairs, `most` of each at most, those whose files are there."""
    found = [
        ("STS-B ≥ 4.5", True, folder / "sts/raw/STSB-train.tsv", _sts(lambda score: score >= 4.5)),
        ("SICK entailment ≥ 4.5", True, folder / "sts/sick/SICK_train.txt", _sick("ENTAILMENT", 4.5)),
        ("Flickr8k siblings", True, folder / "flickr8k/dataset_flickr8k.json", _siblings),
        ("STS-B ≤ 2", False, folder / "sts/raw/STSB-train.tsv", _sts(lambda score: score <= 2)),
        ("SICK contradiction", False, folder / "sts/sick/SICK_train.txt", _sick("CONTRADICTION", 0)),
    ]
    crepe = sorted((folder / "sugarcrepe").glob("*.json"))
    found += [(f"SugarCrepe {path.stem}", False, path, _sugarcrepe) for path in crepe]
    for name, faithful, path, read in found:
        if path.is_file():
            texts = [(one, two) for one, two in read(path) if one.lower() != two.lower()]
            chosen = random.Random(0).sample(texts, min(most, len(texts)))
            yield Group(name, faithful, [pair_of(one, one, two, 1) for one, two in chosen])


def stopped(groups: Sequence[Group], options: GateOptions, encoder: SentenceEncoder) -> dict[str, list[np.ndarray]]:
    """Gate → for each group, whether it stops each pair, each gate asked alone."""
    pairs = [pair for group in groups for pair in group.pairs]
    texts = sorted({text for pair in pairs for text in compared_texts(pair)})
    vectors, row = encoder.encode(texts), {text: number for number, text in enumerate(texts)}

    def cosine(one: str, two: str) -> float:
        return float(vectors[row[one]] @ vectors[row[two]])

    found: dict[str, list[np.ndarray]] = {}
    for name, gate in TEXT_GATES.items():
        found[name] = [np.array([gate(p, options) is not None for p in group.pairs]) for group in groups]
    for name, gate in MEANING_GATES.items():
        found[name] = [np.array([gate(p, options, cosine) is not None for p in group.pairs]) for group in groups]
    return found


def table(groups: Sequence[Group], found: dict[str, list[np.ndarray]]) -> Iterator[str]:
    """False rejects of faithful groups and false accepts of changed ones in percent, as Markdown."""
    yield "| gate | " + " | ".join(f"{group.name} (n = {len(group.pairs)})" for group in groups) + " |"
    yield "|---|" + "---|" * len(groups)
    for name, hits in found.items():
        cells = [_rate(group, hit, name in FORM) for group, hit in zip(groups, hits, strict=True)]
        yield f"| {name} | " + " | ".join(cells) + " |"
    meaning = [
        np.any([hits[at] for name, hits in found.items() if name not in FORM], axis=0) for at in range(len(groups))
    ]
    yield "| **all on meaning** | " + " | ".join(_rate(g, h) for g, h in zip(groups, meaning, strict=True)) + " |"
    every = [np.any([hits[at] for hits in found.values()], axis=0) for at in range(len(groups))]
    yield "| **all** | " + " | ".join(_rate(g, h) for g, h in zip(groups, every, strict=True)) + " |"


def main() -> None:
    """Print the shares of faithful answers, then what each gate stops: of labelled answers, and of real pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, help="folder with sts/, sugarcrepe/ and flickr8k/; without it: labelled pairs only"
    )
    parser.add_argument("--most", type=int, default=400, help="pairs of each human source")
    chosen = parser.parse_args()
    options, encoder = GateOptions(preset="small-model"), SentenceEncoder()
    parts = [("Labelled answers of the embedded model", labelled(rows_of("pairs.jsonl")))]
    photographs = read_pairs(chosen.data) if chosen.data else []
    if chosen.data:
        parts.append(("Labelled answers for photographs of Flickr8k", labelled(photographs)))
        groups = list(real(chosen.data, chosen.most))
        parts += [
            ("Human rewordings: false rejects, %", [group for group in groups if group.faithful]),
            ("Foils: false accepts, %", [group for group in groups if not group.faithful]),
        ]
    print("### Share of faithful answers\n")
    print("\n".join(before_and_after(options, encoder, photographs)))
    for title, groups in parts:
        print(f"\n### {title}\n")
        print("\n".join(table(groups, stopped(groups, options, encoder))))


def _labelled_pair(row: dict[str, Any]) -> Pair:
    return pair_of(row["caption"], row["source"], row["answer"], row["step"])


def _rate(group: Group, hit: np.ndarray, form: bool = False) -> str:
    if not len(hit) or (form and not group.faithful):
        return "–"
    return f"{100 * (hit.mean() if group.faithful else 1 - hit.mean()):.1f}"


def _sts(wanted: Callable[[float], bool]) -> Callable[[Path], Iterator[tuple[str, str]]]:
    def read(path: Path) -> Iterator[tuple[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                if wanted(float(row["score"])):
                    yield row["sentence1"], row["sentence2"]

    return read


def _sick(judgment: str, least: float) -> Callable[[Path], Iterator[tuple[str, str]]]:
    def read(path: Path) -> Iterator[tuple[str, str]]:
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
                told = row.get("entailment_judgment") or row.get("entailment_label") or ""
                if told.strip() == judgment and float(row["relatedness_score"]) >= least:
                    yield row["sentence_A"], row["sentence_B"]

    return read


def _siblings(path: Path) -> Iterator[tuple[str, str]]:
    for image in json.loads(path.read_bytes())["images"]:
        texts = [sentence["raw"] for sentence in image["sentences"]]
        yield texts[0], texts[1]


def _sugarcrepe(path: Path) -> Iterator[tuple[str, str]]:
    for row in json.loads(path.read_bytes()).values():
        yield row["caption"].strip(), row["negative_caption"].strip()


def _pieces(text: str) -> int:
    return len(WHOLE.encode(text)) - 2


if __name__ == "__main__":
    main()
