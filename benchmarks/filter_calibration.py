"""What the filters cost and catch: good paraphrases that they reject, and bad ones that they let through.

    python benchmarks/filter_calibration.py --data FOLDER [--encoder FOLDER]

Good ones are pairs by people (STS-B and SICK entailment from 4.5 upwards), paraphrases in the style of a 7 B model
(tests/data/capable) and what is labelled faithful in tests/data/faithfulness (its Flickr8k part is put together with
the data set). Bad ones are refusals, preambles, orders obeyed and the like (tests/data/capable), SugarCrepe's hard
negatives, SICK contradictions, STS-B up to 2, captions of other images, and what is labelled changed. Pairs that
differ only in case or punctuation are not paraphrases; they are counted, and left out. The folder of real data is only
read; nothing of it is kept.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from flickr8k_pairs import read_pairs
from record import arguments

from paraclip_core.captions.clean import clean
from paraclip_core.captions.pieces import pieces_of
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import AnswerFilter, FilterSpec, Request
from paraclip_core.paraphrase.prompts import FEW_SHOT
from paraclip_core.paraphrase.sentence_encoder import Encoder, SentenceEncoder
from paraclip_core.paraphrase.words import words

TEST_DATA = Path(__file__).parents[1] / "tests" / "data"

Texts = tuple[str, str, str]
"""Caption, input, answer."""


@dataclass(frozen=True)
class Group:
    """Answers of one source that are all good, or all bad."""

    name: str
    step: int
    texts: Sequence[Texts]
    echoes: int = 0
    """Pairs that were left out because they differ only in case or punctuation."""


class Presets:
    """Filters by preset and step, which share their models."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._filters: dict[tuple[str, int], AnswerFilter] = {}
        self._reasons: dict[tuple[str, int, str], list[str | None]] = {}

    def reasons(self, name: str, group: Group, step: int | None = None) -> list[str | None]:
        """Why the filters of `step` (default: the group's own) reject each answer; None if they do not."""
        key = name, step or group.step
        if key not in self._filters:
            options = FilterOptions.model_validate({"preset": name})
            spec = FilterSpec(options, key[1], FEW_SHOT[key[1]].examples)
            self._filters[key] = AnswerFilter(spec, self._encoder, pieces_of)
        if (*key, group.name) not in self._reasons:
            requests = [Request(caption, source, [answer]) for caption, source, answer in group.texts]
            self._reasons[*key, group.name] = [result.reason for result in self._filters[key].filter(requests)]
        return self._reasons[*key, group.name]

    def stopped(self, name: str, group: Group, step: int | None = None) -> float:
        """Percentage of the answers that are rejected."""
        reasons = self.reasons(name, group, step)
        return 100 * sum(reason is not None for reason in reasons) / max(1, len(reasons))


def rows_of(name: str) -> list[dict[str, Any]]:
    """The rows of a file of tests/data."""
    return [json.loads(line) for line in (TEST_DATA / name).read_text("utf-8").splitlines()]


def good_paraphrases() -> Iterator[Group]:
    """Paraphrases in the style of a 7 B model, by half and step."""
    for half in ("tune", "held-out"):
        rows = [row for row in rows_of("capable/paraphrases.jsonl") if row["half"] == half]
        first = [(row["caption"], row["caption"], row["paraphrase_1"]) for row in rows]
        second = [(row["caption"], row["paraphrase_1"], row["paraphrase_2"]) for row in rows]
        yield Group(f"paraphrases, step 1, {half}", 1, first)
        yield Group(f"paraphrases, step 2, {half}", 2, second)


def human_paraphrases(data: Path) -> Iterator[Group]:
    """Pairs that people judged to have the same meaning."""
    sts = [
        (f"STS-B {part} ≥ 4.5", data / f"sts/raw/STSB-{part}.tsv", _sts(4.5, 5)) for part in ("train", "dev", "test")
    ]
    sick = [
        (f"SICK {part} entailment ≥ 4.5", data / f"sts/sick/SICK_{part}.txt", _sick("ENTAILMENT", 4.5))
        for part in ("train", "test_annotated")
    ]
    for name, path, read in (*sts, *sick):
        if path.is_file():
            pairs = list(read(path))
            texts = [(one, one, two) for one, two in pairs if words(one) != words(two)]
            yield Group(name, 1, texts, len(pairs) - len(texts))


def labelled(rows: Sequence[dict[str, Any]], label: str, name: str) -> Iterator[Group]:
    """Hand-labelled answers of the embedded model, by step."""
    for step in (1, 2):
        chosen = [row for row in rows if row["label"] == label and row["step"] == step]
        yield Group(f"{name}, step {step}", step, [(row["caption"], row["source"], row["answer"]) for row in chosen])


def hard_negatives(data: Path, most: int) -> Iterator[Group]:
    """Pairs of texts with different meanings, at most `most` from each source."""
    sources: list[tuple[str, Path, Callable[[Path], Iterator[tuple[str, str]]]]] = [
        ("caption of another image", data / "flickr8k/dataset_flickr8k.json", _other_images),
        ("STS-B ≤ 2", data / "sts/raw/STSB-train.tsv", _sts(0, 2)),
        ("SICK contradiction", data / "sts/sick/SICK_train.txt", _sick("CONTRADICTION", 0)),
        *((f"SugarCrepe {path.stem}", path, _sugarcrepe) for path in sorted((data / "sugarcrepe").glob("*.json"))),
    ]
    for name, path, read in sources:
        if path.is_file():
            pairs = sorted(set(read(path)))
            yield Group(
                name, 1, [(one, one, two) for one, two in random.Random(0).sample(pairs, min(most, len(pairs)))]
            )


def good_table(groups: Sequence[Group], presets: Presets, names: Sequence[str]) -> Iterator[str]:
    """Good paraphrases that are rejected, in percent, and why `capable` rejects them, as Markdown."""
    yield "| good paraphrases | n | echoes left out | " + " | ".join(f"{name} stops, %" for name in names) + " | why |"
    yield "|---|---|---|" + "---|" * (len(names) + 1)
    for group in groups:
        cells = [f"{presets.stopped(name, group):.1f}" for name in names]
        why = Counter(reason for reason in presets.reasons("capable", group) if reason)
        reasons = ", ".join(f"`{reason}` {count}" for reason, count in why.most_common(3)) or "–"
        yield f"| {group.name} | {len(group.texts)} | {group.echoes or '–'} | {' | '.join(cells)} | {reasons} |"


def bad_table(presets: Presets) -> Iterator[str]:
    """Bad answers by kind, and what rejects them, as Markdown."""
    yield "| kind | n | stopped | by |"
    yield "|---|---|---|---|"
    rows = rows_of("capable/bad.jsonl")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        reasons: list[str | None] = []
        for step in (1, 2):
            chosen = [row for row in rows if (row["kind"], row["step"]) == (kind, step)]
            texts = [(row["caption"], row["source"], row["answer"]) for row in chosen]
            reasons += presets.reasons("capable", Group(kind, step, texts))
        counts = Counter(reason for reason in reasons if reason)
        by = ", ".join(f"`{reason}` {count}" for reason, count in counts.most_common())
        yield f"| {kind} | {len(reasons)} | {counts.total()} | {by} |"


def hard_negative_table(groups: Sequence[Group], presets: Presets, names: Sequence[str]) -> Iterator[str]:
    """Hard negatives that are let through, in percent, by the filters of either step, as Markdown."""
    columns = [(name, step) for name in names for step in (1, 2)]
    yield "| hard negative | n | " + " | ".join(f"{name}, step {step}" for name, step in columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for group in groups:
        cells = [f"{100 - presets.stopped(name, group, step):.1f}" for name, step in columns]
        yield f"| {group.name} | {len(group.texts)} | {' | '.join(cells)} |"


def main() -> None:
    """Print how many good paraphrases and bad answers are rejected, and how many hard negatives are let through."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--data", type=Path, help="folder with sts/, sugarcrepe/ and flickr8k/; without it: own data only"
    )
    parser.add_argument("--most", type=int, default=400, help="hard negatives of each source")
    parser.add_argument("--encoder", default="", help="folder or hub id of another sentence encoder")
    chosen = parser.parse_args()
    presets = Presets(SentenceEncoder(chosen.encoder))
    names = ["capable", "small-model"]
    small = [row for name in ("pairs", "fresh") for row in rows_of(f"faithfulness/{name}.jsonl")]
    parts = [(small, "labelled")]
    if chosen.data:
        parts.append((read_pairs(chosen.data), "labelled, Flickr8k"))
    good = [*good_paraphrases(), *(human_paraphrases(chosen.data) if chosen.data else ())]
    bad = list(hard_negatives(chosen.data, chosen.most)) if chosen.data else []
    for rows, name in parts:
        good += labelled(rows, "faithful", f"{name} faithful")
        bad += labelled(rows, "changed", f"{name} changed")
    print("\n".join(("### Good paraphrases", "", *good_table(good, presets, names))))
    print("\n".join(("", "### Bad answers", "", *bad_table(presets))))
    print("\n".join(("", "### Hard negatives that are let through, %", "", *hard_negative_table(bad, presets, names))))


def _sts(least: float, most: float) -> Callable[[Path], Iterator[tuple[str, str]]]:
    def read(path: Path) -> Iterator[tuple[str, str]]:
        for row in _table(path):
            if least <= float(row["score"]) <= most:
                yield clean(row["sentence1"]), clean(row["sentence2"])

    return read


def _sick(judgment: str, least: float) -> Callable[[Path], Iterator[tuple[str, str]]]:
    def read(path: Path) -> Iterator[tuple[str, str]]:
        for row in _table(path):
            label = row.get("entailment_judgment") or row.get("entailment_label") or ""
            if label.strip() == judgment and float(row["relatedness_score"]) >= least:
                yield clean(row["sentence_A"]), clean(row["sentence_B"])

    return read


def _table(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def _other_images(path: Path) -> Iterator[tuple[str, str]]:
    images = json.loads(path.read_bytes())["images"]
    random.Random(0).shuffle(images)
    yield from pairwise(clean(image["sentences"][0]["raw"]) for image in images)


def _sugarcrepe(path: Path) -> Iterator[tuple[str, str]]:
    for row in json.loads(path.read_bytes()).values():
        yield clean(row["caption"]), clean(row["negative_caption"])


if __name__ == "__main__":
    main()
