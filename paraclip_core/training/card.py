"""The model card of a trained release, and its completion with later evaluations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from paraclip_core.evaluation.benchmarks import describe_benchmark, metric_of
from paraclip_core.evaluation.churn import Churn
from paraclip_core.markdown import table

LOAD = {
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH_OF_THIS_FOLDER")
model.eval()  # open_clip gives it ready for training, where an image's embedding can depend on its batch
tokenizer = open_clip.get_tokenizer("local-dir:PATH_OF_THIS_FOLDER")
""",
    "hf": """from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("PATH_OF_THIS_FOLDER")
processor = AutoProcessor.from_pretrained("PATH_OF_THIS_FOLDER")
# SigLIP reads its padding, so texts are padded to the whole context.
inputs = processor(text=["a dog on a beach"], padding="max_length", truncation=True, return_tensors="pt")
vectors = model.get_text_features(**inputs).pooler_output
""",
    "onnx": """import onnxruntime
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH_OF_THIS_FOLDER")
ids = tokenizer(["a dog on a beach"], padding="max_length", truncation=True, return_tensors="np").input_ids
session = onnxruntime.InferenceSession("PATH_OF_THIS_FOLDER/text_model.onnx")
(vectors,) = session.run(None, {"input_ids": ids})
""",
}
LIBRARIES = {"open_clip": "open_clip", "hf": "transformers", "onnx": "onnx"}


def release_card(
    *,
    title: str,
    summary: str,
    base: str,
    image_encoder_hash: str,
    licenses: Mapping[str, int],
    sources: Mapping[str, int],
    options: Mapping[str, Any],
    paraphraser: str | None = None,
    figures: Sequence[Mapping[str, float]] = (),
    base_model: str | None = None,
    revision: str | None = None,
    weights: str | None = None,
) -> str:
    """The README.md of a release: what the model is, its origin and how to load it.

    `licenses` and `sources` count training rows. `figures` are rows of a table, all with the same columns. `base_model`
    and `revision` name the base on the Hugging Face hub, `weights` is the hash of its weights.
    """
    head: dict[str, Any] = {
        "library_name": "open_clip",
        "pipeline_tag": "zero-shot-image-classification",
        "license": "other",
        "license_name": " ".join(", ".join(sorted(licenses)).split()) or "unknown",
        "tags": ["clip", "open_clip", "paraclip"],
    }
    if base_model is not None:
        head |= {"base_model": base_model, "base_model_relation": "finetune"}
    origin = f"`{base}`" + (f" at revision `{revision}`" if revision else "")
    origin += f", weights `{weights}`" if weights else ""
    chosen = [(name, json.dumps(value, sort_keys=True)) for name, value in options.items()]
    parts = [
        _front_matter(head),
        f"# {title}\n\n{summary}\n\n- Base: {origin}\n"
        f"- Image encoder: `{image_encoder_hash}` before and after training, so image embeddings made with the "
        "base stay valid.",
        f"## Load\n\n```python\n{LOAD['open_clip']}```",
        "## Data",
        *([f"Paraphrases: {_cell(paraphraser)}."] if paraphraser else []),
        # Names from data files: `table` makes them inert.
        table(("license as stated", "rows"), sorted(licenses.items())),
        table(("source", "rows"), sorted(sources.items())),
        "## Options\n\n" + _table(("option", "value"), chosen),
    ]
    if figures:
        rows = [tuple(f"{value:g}" for value in row.values()) for row in figures]
        parts.append("## Validation, percent\n\n" + _table(tuple(figures[0]), rows))
    return "\n\n".join(parts) + "\n"


def completed_card(
    card: str,
    *,
    layout: str = "open_clip",
    name: str = "tuned",
    comparison: Mapping[str, Any] | None = None,
    churn: Churn | None = None,
    about: Mapping[str, Any] | None = None,
) -> str:
    """A release's card for another layout, with the evaluation, whose figures also become the hub's `model-index`.

    `comparison` is an evaluation's ``comparison.json``, and `churn` its ``churn.json``. `about` has front-matter fields
    given by the publisher: `language`, `datasets`, `license`.
    """
    head, body = _parted(card)
    for other in LOAD.values():  # the release may be an export
        body = body.replace(other, LOAD[layout])
    head["library_name"] = LIBRARIES[layout]
    head |= about or {}
    if "license" in (about or {}):
        head.pop("license_name", None)
    if comparison is not None:
        head["metrics"] = list(dict.fromkeys(str(row["metric"]) for row in comparison["rows"]))
        head["model-index"] = [{"name": name, "results": _results(comparison["rows"])}]
        body += f"\n## Evaluation\n\n{_evaluation(comparison)}\n"
    if churn is not None:
        body += f"\n{_churn(churn)}\n"
    return f"{_front_matter(head)}\n{body}"


def _results(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        facts, benchmark = describe_benchmark(row["kind"]), str(row["benchmark"])
        task, dataset = {"type": facts.hub_task, "name": facts.title}, {"type": benchmark, "name": benchmark}
        result = results.setdefault(benchmark, {"task": task, "dataset": dataset, "metrics": []})
        name, unit = str(row["metric"]), metric_of(row["kind"], row["metric"]).unit
        label = f"{name}, {'percent' if unit == '%' else unit}"
        result["metrics"].append({"type": name, "name": label, "value": round(row["tuned"], 2)})
    return list(results.values())


def _evaluation(comparison: Mapping[str, Any]) -> str:
    share = f"{100 * comparison['confidence']:g} %"
    rows = [
        (
            row["benchmark"],
            ", ".join([f"{row['metric']} {facts.arrow}", *facts.notes]),
            row["n"],
            f"{row['base']:.2f}",
            f"{row['tuned']:.2f}",
            f"{row['delta']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]",
        )
        for row in comparison["rows"]
        for facts in [metric_of(row["kind"], row["metric"])]
    ]
    head = ("benchmark", "metric", "queries", "base", "this model", f"difference, {share} interval")
    return f"Percent. Verdict: {_cell(comparison['verdict'])} ({_cell(comparison['reason'])}).\n\n{_table(head, rows)}"


def _churn(churn: Churn) -> str:
    """One line for those who replace the base with this model."""
    matches = [f"{row.base:g} becomes {row.tuned:g}" for row in churn.thresholds]
    middle = matches[len(matches) // 2 :][:1]
    note = f" Thresholds on the cosine change: {middle[0]} if as many images should pass." if middle else ""
    return f"Against the base, over {churn.queries:,} queries and {churn.images:,} images: {churn.sentence}{note}"


def _parted(card: str) -> tuple[dict[str, Any], str]:
    if not card.startswith("---\n") or "\n---\n" not in card:
        return {}, card
    head, _, body = card.removeprefix("---\n").partition("\n---\n")
    return yaml.safe_load(head) or {}, body


def _front_matter(head: Mapping[str, Any]) -> str:
    plain = yaml.safe_dump(dict(head), sort_keys=False, allow_unicode=True, width=1_000)
    return f"---\n{plain}---"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(_cell(cell) for cell in row) + " |" for row in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _cell(value: object) -> str:
    return " ".join(str(value).replace("|", "\\|").replace("<", "&lt;").split())
