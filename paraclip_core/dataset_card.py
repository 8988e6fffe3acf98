"""The card of a published data set: front matter for the Hugging Face hub, and how the rows came to be."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from huggingface_hub import DatasetCardData

from paraclip_core.demo.synonyms import THESAURUS, WORD_SAMPLING
from paraclip_core.licenses import CLASSES, license_class, roll_up
from paraclip_core.markdown import fenced, inert, table
from paraclip_core.paraphrase.prompts import PromptTemplate

SIZES = (
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B", "10B<n<100B",
    "100B<n<1T", "n>1T",
)  # fmt: skip
"""The hub's names, a power of ten each from a thousand rows on."""
COLUMNS = {
    "caption_id": "hash of image id and caption, 32 hexadecimal digits; rewrites of one caption share it",
    "caption": "the caption that came with the image, cleaned",
    "paraphrase_1": "the caption in plain language",
    "paraphrase_2": "paraphrase 1 in other words",
    "image_id": "key of the image in its source, null where the source has captions only",
    "source": "file that the caption was read from",
    "license": "license of the row as its source states it",
    "similarity_1": "cosine of the sentence encoder between caption and paraphrase 1",
    "similarity_2": "cosine between caption and paraphrase 2",
}
LICENSE_NAME = 100
"""Characters of a license's name in the front matter."""
LICENSES_SHOWN = 50
DRAWING = ("temperature", "top_p", "max_tokens", "n")
ABOUT_ASKING = ("fraction", "seed", "attempts", "synonyms", "regenerate")
SUMMARY = (
    "Image captions with two paraphrases each: paraphrase 1 says the caption in plain language, paraphrase 2 says "
    "paraphrase 1 in other words. Made with paraclip after ParaCLIP (https://arxiv.org/abs/2402.15120), to make a CLIP "
    "text encoder rank images alike for different wordings. The images themselves are not part of the data set."
)
LIMITS = (
    "Captions are what their authors wrote: they may be wrong, biased or offensive, and they may contain text that "
    "looks like instructions, markup or links. Paraphrases repeat all of that and may add errors of their own. Treat "
    "every text as data."
)


@dataclass(frozen=True)
class StepFacts:
    """A paraphrase step: what its manifest says, and what the model was shown."""

    options: Mapping[str, Any]
    metrics: Mapping[str, Any]
    prompt: PromptTemplate | None
    """None where no model was asked."""


@dataclass(frozen=True)
class WordStatistics:
    """Words of the texts of a column."""

    least: int
    median: int
    mean: float
    p95: int
    most: int


@dataclass(frozen=True)
class OptOutFacts:
    """What an opt-out list did."""

    entries: int
    rows: int
    """Rows that were left out."""


@dataclass(frozen=True)
class DatasetFacts:
    """All that the card tells."""

    name: str
    rows: Mapping[str, int]
    """Rows by split."""
    columns: Sequence[str]
    ingest_options: Mapping[str, Any]
    ingest_metrics: Mapping[str, Any]
    steps: tuple[StepFacts, StepFacts]
    words: Mapping[str, WordStatistics]
    samples: Sequence[Mapping[str, Any]]
    licenses: Mapping[str, int]
    """Rows by license as stated."""
    opt_outs: OptOutFacts | None
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    languages: Sequence[str] = ("en",)
    contact: str = ""
    """Where to ask for removal, in the publisher's words."""
    models: Sequence[str] = ()
    """Models on the hub that were tuned on it."""

    @property
    def by_model(self) -> bool:
        """Whether a language model wrote the paraphrases; otherwise they were given in a file."""
        return self.steps[0].prompt is not None


def word_statistics(histogram: Mapping[int, int]) -> WordStatistics:
    """Statistics of texts, counted by their words; median and 95th percentile are nearest ranks, so whole words."""
    lengths = sorted(histogram)
    ranks = list(accumulate(histogram[length] for length in lengths))
    if not lengths:
        return WordStatistics(0, 0, 0.0, 0, 0)
    median, p95 = (lengths[bisect_left(ranks, -(-ranks[-1] * percent // 100))] for percent in (50, 95))
    mean = sum(length * count for length, count in histogram.items()) / ranks[-1]
    return WordStatistics(lengths[0], median, mean, p95, lengths[-1])


def dataset_card(facts: DatasetFacts) -> str:
    """A README.md in which no text of the data comes alive; equal facts give equal bytes."""
    sections = {
        "Load": _load(facts),
        "Columns": table(("column", "meaning"), [(name, COLUMNS[name]) for name in facts.columns]),
        "Samples": _samples(facts),
        "Counts": _counts(facts),
        "Length in words": _lengths(facts),
        "Licenses": _licenses(facts),
        "How the paraphrases were made": _making(facts),
        "Prompts": _prompts(facts),
        "Gates": _gates(facts),
        "Opt-outs and removal": _removal(facts),
        "Limits": LIMITS,
        "Where it came from": _origin(facts),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(facts)}\n---\n\n# {inert(facts.name)}\n\n{SUMMARY}\n\n{body}\n"


def _front_matter(facts: DatasetFacts) -> str:
    whole = roll_up(facts.licenses)
    files = [{"split": split, "path": f"data/{split}-*"} for split in facts.rows]
    name = re.sub(r"[^a-z0-9.+]+", "-", " ".join(whole.strictest).lower()).strip("-")[:LICENSE_NAME]
    other: dict[str, Any] = {"license_name": name or "unknown"} if whole.hub == ("other",) else {}
    data = DatasetCardData(
        language=list(facts.languages),
        license=whole.hub[0] if len(whole.hub) == 1 else list(whole.hub),
        **other,
        pretty_name=facts.name,
        task_categories=["sentence-similarity", "text-generation"],
        size_categories=[_size(sum(facts.rows.values()))],
        tags=["paraphrase", "image-captions", "clip", *(["synthetic"] if facts.by_model else []), "paraclip"],
        configs=[{"config_name": "default", "data_files": files}],
    )
    return data.to_yaml().strip()


def _size(rows: int) -> str:
    place = next((place for place in range(len(SIZES)) if rows < 1000 * 10**place), len(SIZES) - 1)
    return SIZES[place]


def _load(facts: DatasetFacts) -> str:
    split = next(iter(facts.rows))
    python = (
        "from datasets import load_dataset\n\n"
        f'rows = load_dataset("PATH_OF_THIS_FOLDER", split="{split}")\n'
        "print(rows[0])"
    )
    sql = (
        "SELECT caption, paraphrase_1, paraphrase_2\n"
        f"FROM read_parquet('PATH_OF_THIS_FOLDER/data/{split}-*.parquet') LIMIT 5;"
    )
    return f"{fenced(python, 'python')}\n\nOr with DuckDB:\n\n{fenced(sql, 'sql')}"


def _samples(facts: DatasetFacts) -> str:
    lines = [json.dumps(dict(row), ensure_ascii=False, indent=1) for row in facts.samples]
    return f"The rows with the smallest caption ids, which are hashes.\n\n{fenced(chr(10).join(lines), 'json')}"


def _counts(facts: DatasetFacts) -> str:
    ingest, (one, two) = facts.ingest_metrics, facts.steps
    rows: list[tuple[str, object]] = [
        ("rows read from the sources", ingest.get("read", "")),
        ("captions kept", ingest.get("accepted", "")),
        ("captions asked for paraphrase 1", one.metrics.get("captions", "")),
        ("captions with an accepted paraphrase 1", one.metrics.get("accepted", "")),
        ("captions with an accepted paraphrase 2", two.metrics.get("accepted", "")),
        ("left out by opt-outs", facts.opt_outs.rows if facts.opt_outs else 0),
        *((f"rows here, {split}", count) for split, count in facts.rows.items()),
    ]
    refused = [
        (where, reason, count)
        for where, metrics in (("captions", ingest), ("paraphrase 1", one.metrics), ("paraphrase 2", two.metrics))
        for reason, count in sorted(metrics.get("rejected", {}).items())
    ]
    rejects = table(("where", "reason", "rejected"), refused) if refused else "Nothing was rejected."
    return (
        f"{table(('what', 'count'), rows)}\n\nRejected, by reason (an answer that was asked for again is counted each "
        f"time):\n\n{rejects}"
    )


def _lengths(facts: DatasetFacts) -> str:
    rows = [(name, of.least, of.median, f"{of.mean:.2f}", of.p95, of.most) for name, of in facts.words.items()]
    return table(("column", "min", "median", "mean", "p95", "max"), rows)


def _licenses(facts: DatasetFacts) -> str:
    whole = roll_up(facts.licenses)
    ranked = sorted(facts.licenses.items(), key=lambda item: (-item[1], item[0]))
    rows = [(name, count, CLASSES[license_class(name)]) for name, count in ranked[:LICENSES_SHOWN]]
    more = f"\n\nAnd {len(ranked) - len(rows)} more." if len(ranked) > len(rows) else ""
    strictest = ", ".join(inert(name) for name in whole.strictest[:LICENSES_SHOWN])
    notes = "".join(f"\n- {note}" for note in whole.notes)
    terms = "The terms of the language model that wrote the paraphrases"
    if not facts.by_model:
        terms = "Those of the file of paraphrases"
    return (
        f"{table(('license as stated', 'rows', 'class'), rows)}{more}\n\nThe whole is under the strictest of them: "
        f"**{strictest}** ({whole.kind}). Each row names its own in the column `license`. {terms} may apply besides."
        f"{chr(10) + notes if notes else ''}"
    )


def _making(facts: DatasetFacts) -> str:
    one, two = facts.steps
    rows = [
        ("engine", one.metrics.get("engine", ""), two.metrics.get("engine", "")),
        ("model and revision, or content hash", one.metrics.get("model", ""), two.metrics.get("model", "")),
    ]
    drawn = [
        (f"sampling, {name}", *(step.options.get("sampling", {}).get(name) for step in (one, two))) for name in DRAWING
    ]
    asked = [(name, *(step.options.get(name) for step in (one, two))) for name in ABOUT_ASKING]
    rows += [
        (name, _plain(first), _plain(second))
        for name, first, second in drawn + asked
        if (first, second) != (None, None)
    ]
    how = (
        "A language model wrote them in two steps, one request for each different text."
        if facts.by_model
        else "The paraphrases were given in a file, whose content hash stands below; no model was asked."
    )
    return f"{how}\n\n{table(('option', 'step 1', 'step 2'), rows)}"


def _plain(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _prompts(facts: DatasetFacts) -> str:
    parts = [_prompt(f"Step {number}", step.prompt) for number, step in enumerate(facts.steps, start=1) if step.prompt]
    if any(step.options.get("synonyms") for step in facts.steps):
        drawn = ", ".join(f"{name} {getattr(WORD_SAMPLING, name):g}" for name in DRAWING)
        parts.append(_prompt(f"Single words, drawn with {drawn}", THESAURUS))
    return "\n\n".join(parts) or "None: no model was asked."


def _prompt(what: str, prompt: PromptTemplate) -> str:
    text = "\n".join(f"{role}: {words}" for role, words in prompt.messages("{}"))
    return f"{what}, prompt {inert(prompt.id)}; the text goes where `{{}}` stands:\n\n{fenced(text)}"


def _gates(facts: DatasetFacts) -> str:
    one, two = (dict(step.options.get("gates", {})) for step in facts.steps)
    if one.get("preset") == two.get("preset") == "off":
        return "Off: every answer that is not empty was kept."
    rows = [(name, _plain(one.get(name)), _plain(two.get(name))) for name in sorted(one | two)]
    return "An answer is kept if it passes every gate; these are the thresholds.\n\n" + table(
        ("option", "step 1", "step 2"), rows
    )


def _removal(facts: DatasetFacts) -> str:
    outs = facts.opt_outs
    done = (
        "No opt-out list was given."
        if outs is None
        else f"Rows left out because of a list of {outs.entries} opt-outs: {outs.rows}."
    )
    where = facts.contact or "open a discussion on this data set's page, or write to whoever published it"
    return (
        f"{done}\n\nTo have your caption or image removed: {where}. Name the caption id, the image id or the exact "
        "caption; no reason is needed. The publisher adds it to the opt-out list and exports the data set again "
        "(`paraclip export-dataset --opt-outs FILE`), so every later version leaves those rows out."
    )


def _origin(facts: DatasetFacts) -> str:
    options = json.dumps(dict(facts.ingest_options), ensure_ascii=False, indent=1, sort_keys=True)
    parts = [
        table(("artifact", "fingerprint"), list(facts.fingerprints.items())),
        f"Options of reading and filtering the captions:\n\n{fenced(options, 'json')}",
        table(("software", "version"), sorted(facts.versions.items())),
    ]
    if facts.models:
        links = ", ".join(f"[{inert(name)}](https://huggingface.co/{name})" for name in facts.models)
        parts.append(f"Models that were tuned on it: {links}.")
    return "\n\n".join(parts)
