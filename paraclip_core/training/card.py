"""The model card of a trained release, and its completion with what was measured later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from paraclip_core.evaluation.benchmarks import describe_benchmark, metric_of
from paraclip_core.markdown import table

LOAD = {
    "open_clip": """import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:PATH_OF_THIS_FOLDER")
model.eval()  # open_clip gives it ready for training, where an image's embedding can depend on its batch
tokenizer = open_clip.get_tokenizer("local-dir:PATH_OF_THIS_FOLDER")
""",
    "hf": """from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained("PATH_OF_THIS_FOLDER")
processor = CLIPProcessor.from_pretrained("PATH_OF_THIS_FOLDER")
""",
    "sentence-transformers": """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("PATH_OF_THIS_FOLDER")
vectors = model.encode(["a dog on a beach"], normalize_embeddings=True)
""",
    "onnx": """import onnxruntime
import open_clip

ids = open_clip.SimpleTokenizer()(["a dog on a beach"]).numpy()  # int64 [batch, length], see text_model.json
session = onnxruntime.InferenceSession("PATH_OF_THIS_FOLDER/text_model.onnx")
(vectors,) = session.run(None, {"input_ids": ids})
""",
    "onnx, other tokens": """import onnxruntime

ids = ...  # int64 [batch, length]: made as text_model.json says, by the tokenizer in this folder
session = onnxruntime.InferenceSession("PATH_OF_THIS_FOLDER/text_model.onnx")
(vectors,) = session.run(None, {"input_ids": ids})
""",
}
LIBRARIES = {"hf": "transformers", "sentence-transformers": "sentence-transformers", "onnx": "onnx"}
CURVE_POINTS = 12


@dataclass(frozen=True, kw_only=True)
class ReleaseCard:
    """The README.md of a release: what the model is, its origin, how to load it."""

    title: str
    summary: str
    """What was done, in a sentence or two."""
    base: str
    """The model that it started from."""
    image_tower_hash: str
    """Equal before and after training."""
    licences: Mapping[str, int]
    """Training rows under each stated licence."""
    options: Mapping[str, Any]
    """Hyper-parameters."""
    sources: Mapping[str, int] | None = None
    """Training rows from each source."""
    paraphraser: str | None = None
    """Who wrote the paraphrases, where there are any."""
    figures: Sequence[Mapping[str, float]] = ()
    """Rows of the table of validation figures, all with the same columns."""
    base_model: str | None = None
    """The base's name on the Hugging Face hub, where it has one."""
    revision: str | None = None
    """The base's commit there, where it is known."""
    weights: str | None = None
    """Hash of the base's weights."""

    def __str__(self) -> str:
        """The card as Markdown."""
        revision = f" at revision `{self.revision}`" if self.revision else ""
        weights = f", weights `{self.weights}`" if self.weights else ""
        options = [(name, json.dumps(value, sort_keys=True)) for name, value in self.options.items()]
        parts = [
            self._front_matter(),
            f"# {self.title}\n\n{self.summary}\n\n- Base: `{self.base}`{revision}{weights}\n"
            f"- Image tower: `{self.image_tower_hash}` before and after training, so image embeddings made with the "
            "base stay valid.",
            f"## Load\n\n```python\n{LOAD['open_clip']}```",
            self._data(),
            "## Options\n\n" + _table(("option", "value"), options),
        ]
        if self.figures:
            rows = [tuple(f"{value:g}" for value in row.values()) for row in self.figures]
            parts.append("## Validation, percent\n\n" + _table(tuple(self.figures[0]), rows))
        return "\n\n".join(parts) + "\n"

    def _front_matter(self) -> str:
        head: dict[str, Any] = {
            "library_name": "open_clip",
            "pipeline_tag": "zero-shot-image-classification",
            "license": "other",
            "license_name": " ".join(", ".join(sorted(self.licences)).split()) or "unknown",
            "tags": ["clip", "open_clip", "paraclip"],
        }
        if self.base_model is not None:
            head |= {"base_model": self.base_model, "base_model_relation": "finetune"}
        return _front_matter(head)

    def _data(self) -> str:
        parts = ["## Data", *([f"Paraphrases: {_cell(self.paraphraser)}."] if self.paraphraser else [])]
        # Names from data files: `table` makes them inert.
        parts.append(table(("licence as stated", "rows"), sorted(self.licences.items())))
        if self.sources:
            parts.append(table(("source", "rows"), sorted(self.sources.items())))
        return "\n\n".join(parts)


def completed_card(
    card: str,
    *,
    layout: str = "open_clip",
    own_tokens: bool = False,
    name: str = "tuned",
    comparison: Mapping[str, Any] | None = None,
    log: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
) -> str:
    """A release's card for another layout, with the training's curve and the evaluation.

    The figures also go into the front matter as the hub's `model-index`.

    Args:
        card: the text of a :class:`ReleaseCard`.
        layout: open_clip, hf, onnx or sentence-transformers; decides how to load the model.
        own_tokens: whether its tokens are others than CLIP's, or its context is shorter.
        name: the model's name in the index.
        comparison: an evaluation's ``comparison.json``.
        log: lines of the training log, with `step` and `loss`.
        about: fields of the front matter that the publisher states: `language`, `datasets`, `license`.
    """
    head, body = _parted(card)
    load = LOAD["onnx, other tokens"] if layout == "onnx" and own_tokens else LOAD[layout]
    for other in LOAD.values():  # the release may be an export
        body = body.replace(other, load)
    head["library_name"] = LIBRARIES.get(layout, "open_clip")
    head |= about or {}
    if "license" in (about or {}):
        head.pop("license_name", None)
    curve = _curve(log)
    if curve:
        body += "\n## Training\n\n" + _table(("step", "loss"), curve) + "\n"
    if comparison is not None:
        head["metrics"] = list(dict.fromkeys(str(row["metric"]) for row in comparison["rows"]))
        head["model-index"] = [{"name": name, "results": _results(comparison["rows"])}]
        body += f"\n## Evaluation\n\n{_evaluation(comparison)}\n"
    return f"{_front_matter(head)}\n{body}"


def _results(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    results: dict[str, dict[str, Any]] = {}
    for row in rows:
        facts, benchmark = describe_benchmark(row["kind"]), str(row["benchmark"])
        result = results.setdefault(
            benchmark,
            {
                "task": {"type": facts.hub_task, "name": facts.title},
                "dataset": {"type": benchmark, "name": benchmark},
                "metrics": [],
            },
        )
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


def _curve(log: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    points = [(entry["step"], entry["loss"]) for entry in log if "step" in entry and "loss" in entry]
    if not points:
        return []
    last = len(points) - 1
    chosen = sorted({round(number * last / (CURVE_POINTS - 1)) for number in range(CURVE_POINTS)})
    return [(str(points[place][0]), f"{points[place][1]:.4g}") for place in chosen]


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
