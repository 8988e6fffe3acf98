"""The dataset card of a set of paraphrases."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from huggingface_hub import DatasetCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from paraclip_core.markdown import fenced, inert, table
from paraclip_core.paraphrase.filters import preset_named
from paraclip_core.paraphrase.prompts import PromptTemplate

_ON_THE_HUB = frozenset(
    "apache-2.0 mit cc0-1.0 pddl odc-by odbl cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 cc-by-2.0 "  # noqa: SIM905
    "cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 "
    "cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0".split()
)
"""Identifiers of https://huggingface.co/docs/hub/repositories-licenses under which data are published."""


def hub_licenses(licenses: Iterable[str]) -> tuple[str, ...]:
    """The hub's identifiers of the stated licenses: `unknown` if none is stated, `other` if one has no identifier."""
    names = {"-".join(re.findall(r"[a-z0-9.+]+", stated.casefold())) for stated in licenses} or {"unknown"}
    if names == {"unknown"}:
        return ("unknown",)
    return tuple(sorted(names)) if names <= _ON_THE_HUB else ("other",)


COLUMNS = {
    "caption_id": "hash of image id and caption, 32 hexadecimal digits; paraphrases of one caption share it",
    "caption": "the caption that came with the image, cleaned",
    "paraphrase_1": "the caption in plain language",
    "paraphrase_2": "paraphrase 1 in other words",
    "image_id": "key of the image in its source, null where the source has captions only",
    "source": "file that the caption was read from",
    "license": "license of the row as its source states it",
    "similarity_1": "cosine of the sentence encoder between caption and paraphrase 1",
    "similarity_2": "cosine between caption and paraphrase 2",
}
SPLIT = "train"
"""Of all rows: no other caption is paraphrased."""
LICENSE_NAME = 100
"""Maximum length of a license's name in the front matter, in characters."""
LICENSES_SHOWN = 50
DRAWING = ("temperature", "top_p", "max_tokens", "n")
ABOUT_ASKING = ("fraction", "seed", "attempts", "synonyms")


@dataclass(frozen=True)
class StepFacts:
    """A paraphrase step: its manifest, and the prompt that the model was shown."""

    options: Mapping[str, Any]
    metrics: Mapping[str, Any]
    prompt: PromptTemplate | None
    """None if no model was asked."""


@dataclass(frozen=True)
class DatasetFacts:
    """Everything on the card."""

    name: str
    rows: int
    columns: Sequence[str]
    ingest_options: Mapping[str, Any]
    ingest_metrics: Mapping[str, Any]
    steps: tuple[StepFacts, StepFacts]
    samples: Sequence[Mapping[str, Any]]
    licenses: Mapping[str, int]
    """Rows by stated license."""
    opt_outs: tuple[int, int] | None
    """Entries of an opt-out list, and rows left out because of it."""
    fingerprints: Mapping[str, str]
    versions: Mapping[str, str]
    languages: Sequence[str] = ("en",)
    contact: str = ""
    """Where to ask for removal, in the publisher's words."""
    models: Sequence[str] = ()
    """Models on the hub that were tuned on it."""

    @property
    def by_model(self) -> bool:
        """Whether a language model wrote the paraphrases; otherwise they come from a file."""
        return self.steps[0].prompt is not None


def dataset_card(facts: DatasetFacts) -> str:
    """A README.md in which all texts from the data are inert; equal facts give equal bytes."""
    # Not escaped as HTML: the filters make texts inert, or they stand in fences.
    environment = Environment(
        loader=PackageLoader("paraclip_core", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    as_json = partial(json.dumps, ensure_ascii=False, indent=1)
    environment.filters.update(
        inert=inert,
        fenced=fenced,
        as_text=lambda prompt: "\n".join(": ".join(turn) for turn in prompt.messages("{}")),
        as_json=partial(as_json, sort_keys=True),
    )
    step_1, step_2 = facts.steps
    ranked = sorted(facts.licenses.items(), key=lambda item: (-item[1], item[0]))
    shown = ranked[:LICENSES_SHOWN]
    filters = [step.options.get("filters", {}) for step in facts.steps]
    return environment.get_template("dataset_card.txt").render(
        facts=facts,
        table=table,
        front_matter=_front_matter(facts),
        split=SPLIT,
        columns=[(name, COLUMNS[name]) for name in facts.columns],
        samples="\n".join(as_json(dict(row)) for row in facts.samples),
        counts=_counts(facts),
        rejected=[
            (where, reason, count)
            for where, metrics in (
                ("captions", facts.ingest_metrics),
                ("paraphrase 1", step_1.metrics),
                ("paraphrase 2", step_2.metrics),
            )
            for reason, count in sorted(metrics.get("rejected", {}).items())
        ],
        licenses=shown,
        more_licenses=len(ranked) - len(shown),
        making=_making(facts),
        prompts=_prompts(facts),
        filters=[]
        if all(of.get("preset") == "off" for of in filters)
        else [(name, *(_plain(of.get(name)) for of in filters)) for name in sorted({*filters[0], *filters[1]})],
    )


def _front_matter(facts: DatasetFacts) -> str:
    name = re.sub(r"[^a-z0-9.+]+", "-", " ".join(sorted(facts.licenses)).lower()).strip("-")[:LICENSE_NAME]
    identifiers = hub_licenses(facts.licenses)
    license_name: dict[str, Any] = {"license_name": name or "unknown"} if identifiers == ("other",) else {}
    data = DatasetCardData(
        language=list(facts.languages),
        license=identifiers[0] if len(identifiers) == 1 else list(identifiers),
        **license_name,
        pretty_name=facts.name,
        task_categories=["sentence-similarity", "text-generation"],
        tags=["paraphrase", "image-captions", "clip", *(["synthetic"] if facts.by_model else []), "paraclip"],
        configs=[{"config_name": "default", "data_files": [{"split": SPLIT, "path": f"data/{SPLIT}-*"}]}],
    )
    return data.to_yaml().strip()


def _counts(facts: DatasetFacts) -> list[tuple[str, object]]:
    ingest, (step_1, step_2) = facts.ingest_metrics, facts.steps
    return [
        ("rows read from the sources", ingest.get("read", "")),
        ("captions kept", ingest.get("accepted", "")),
        ("captions asked for paraphrase 1", step_1.metrics.get("captions", "")),
        ("captions with an accepted paraphrase 1", step_1.metrics.get("accepted", "")),
        ("captions with an accepted paraphrase 2", step_2.metrics.get("accepted", "")),
        ("left out by opt-outs", facts.opt_outs[1] if facts.opt_outs else 0),
        (f"rows here, {SPLIT}", facts.rows),
    ]


def _making(facts: DatasetFacts) -> list[tuple[str, ...]]:
    rows: list[tuple[str, list[Any]]] = [
        ("engine", [step.metrics.get("engine", "") for step in facts.steps]),
        ("model and revision, or content hash", [step.metrics.get("model", "") for step in facts.steps]),
        *(
            (f"sampling, {name}", [step.options.get("sampling", {}).get(name) for step in facts.steps])
            for name in DRAWING
        ),
        *((name, [step.options.get(name) for step in facts.steps]) for name in ABOUT_ASKING),
    ]
    return [(name, *map(_plain, cells)) for name, cells in rows if cells != [None, None]]


def _plain(value: object) -> str:
    return "" if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _prompts(facts: DatasetFacts) -> list[tuple[str, PromptTemplate]]:
    parts = [(f"Step {number}", step.prompt) for number, step in enumerate(facts.steps, start=1) if step.prompt]
    presets = [step.options["filters"]["preset"] for step in facts.steps if step.options.get("synonyms")]
    if presets and (words := preset_named(presets[0]).words) is not None:
        drawn = ", ".join(f"{name} {getattr(words.sampling, name):g}" for name in DRAWING)
        parts.append((f"Single words, drawn with {drawn}", words.template))
    return parts
