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
from paraclip_core.paraphrase.filter_options import FilterOptions
from paraclip_core.paraphrase.filtering import AnswerFilter, FilterSpec, Request
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


class Filters:
    """The filters of both steps, which share their encoder."""

    def __init__(self, encoder: Encoder) -> None:
        options = FilterOptions(preset="capable")
        self._filters = {step: AnswerFilter(FilterSpec(options, step), encoder) for step in (1, 2)}

    def reasons(self, group: Group, step: int | None = None) -> list[str]:
        """Why the filters of `step` (default: the group's own) reject answers, of those that they reject."""
        requests = [Request(caption, source, [answer]) for caption, source, answer in group.texts]
        results = self._filters[step or group.step].filter(requests)
        return [result.reason for result in results if result.reason is not None]


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


def good_table(groups: Sequence[Group], filters: Filters) -> Iterator[str]:
    """Good paraphrases that are rejected, in percent, and why, as Markdown."""
    yield "| good paraphrases | n | echoes left out | rejected, % | why |"
    yield "|---|---|---|---|---|"
    for group in groups:
        reasons = filters.reasons(group)
        share = 100 * len(reasons) / max(1, len(group.texts))
        why = ", ".join(f"`{reason}` {count}" for reason, count in Counter(reasons).most_common(3)) or "–"
        yield f"| {group.name} | {len(group.texts)} | {group.echoes or '–'} | {share:.1f} | {why} |"


def bad_table(filters: Filters) -> Iterator[str]:
    """Bad answers by kind, and what rejects them, as Markdown."""
    yield "| kind | n | stopped | by |"
    yield "|---|---|---|---|"
    rows = rows_of("capable/bad.jsonl")
    for kind in dict.fromkeys(row["kind"] for row in rows):
        chosen, counts = [row for row in rows if row["kind"] == kind], Counter[str]()
        for step in (1, 2):
            texts = [(row["caption"], row["source"], row["answer"]) for row in chosen if row["step"] == step]
            counts.update(filters.reasons(Group(kind, step, texts)))
        by = ", ".join(f"`{reason}` {count}" for reason, count in counts.most_common())
        yield f"| {kind} | {len(chosen)} | {counts.total()} | {by} |"


def hard_negative_table(groups: Sequence[Group], filters: Filters) -> Iterator[str]:
    """Hard negatives that are let through, in percent, by the filters of either step, as Markdown."""
    yield "| hard negative | n | step 1 | step 2 |"
    yield "|---|---|---|---|"
    for group in groups:
        count = max(1, len(group.texts))
        cells = [f"{100 - 100 * len(filters.reasons(group, step)) / count:.1f}" for step in (1, 2)]
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
    filters = Filters(SentenceEncoder(chosen.encoder))
    small = [row for name in ("pairs", "fresh") for row in rows_of(f"faithfulness/{name}.jsonl")]
    parts = [(small, "labelled")]
    if chosen.data:
        parts.append((read_pairs(chosen.data), "labelled, Flickr8k"))
    good = [*good_paraphrases(), *(human_paraphrases(chosen.data) if chosen.data else ())]
    bad = list(hard_negatives(chosen.data, chosen.most)) if chosen.data else []
    for rows, name in parts:
        good += labelled(rows, "faithful", f"{name} faithful")
        bad += labelled(rows, "changed", f"{name} changed")
    print("\n".join(("### Good paraphrases", "", *good_table(good, filters))))
    print("\n".join(("", "### Bad answers", "", *bad_table(filters))))
    print("\n".join(("", "### Hard negatives that are let through, %", "", *hard_negative_table(bad, filters))))


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
