"""What each part of the method is worth: variants of one run, fine-tuned, evaluated and put into one table.

    python benchmarks/ablations.py -c configs/demo.yaml --seeds 3
    python benchmarks/ablations.py -c configs/demo.yaml --variant 'lr 1e-3: finetune.learning_rate=1e-3'

All variants share the earlier stages' artifacts, so each costs one fine-tuning and one evaluation; finished ones are
reused. The figures are the evaluation's: tuned minus base, with the interval, and the mean over the seeds; below them,
if `evaluate.control` is set, tuned minus the caption-only control.
*validation* is the gain in AO@10 on the training images that are held out for choosing α, at that α. A setting chosen
by it, and not by the other columns, is judged on images that it was not chosen on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from record import arguments

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.models import base_kind
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.settings import load_settings
from paraclip_core.training.options import RATES
from paraclip_core.training.validation import AO

STANDARD = {
    "all three losses": [],
    "captions only (control)": ["finetune.texts=captions"],
    "without image~paraphrase 2": ["finetune.weights.image_paraphrase_2=0"],
    "without caption~paraphrase 1": ["finetune.weights.caption_paraphrase_1=0"],
    "without paraphrase 1~2": ["finetune.weights.paraphrase_1_paraphrase_2=0"],
    "plus image~caption, as strong": ["finetune.weights.image_caption=1"],
    "without image~caption": ["finetune.weights.image_caption=0"],
    "distillation in place of α": ["finetune.feature_distillation=10", "finetune.alpha.grid=[1.0]"],
    "distillation and α": ["finetune.feature_distillation=10"],
    "no interpolation": ["finetune.alpha.grid=[1.0]"],
    "ranking distillation": ["finetune.ranking_distillation.weight=1"],
    "without ranking distillation": ["finetune.ranking_distillation.weight=0"],
    "half the learning rate": [],
    "double the learning rate": [],
}
METRICS = {
    "query_pairs/ao@10": "paraphrased queries AO@10", "query_pairs/hard_negative_ao@10": "hard negatives AO@10",
    "query_pairs/margin": "margin",
    "paraphrased_retrieval/ao@10": "captions AO@10", "retrieval/text_to_image_recall@10": "recall@10",
    "sts/spearman": "STS",
}  # fmt: skip
"""Columns: a benchmark's kind and metric."""


def main() -> None:
    """Run the variants and print a Markdown table."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--variant", action="append", default=[], metavar="'NAME: a.b=c d.e=f'")
    chosen = parser.parse_args()
    base = load_settings(chosen.config, chosen.overrides, os.environ)
    variants = dict(parse_variant(text) for text in chosen.variant) or standard(base)
    titles = " | ".join(METRICS.values())
    print(f"| variant | rows | α | validation | {titles} | verdicts |\n|---|---|---|---|{'---|' * len(METRICS)}---|")
    for name, overrides in variants.items():
        results = [measure(Run(settings)) for settings in of_seeds(chosen, overrides)]
        print(row(name, results), flush=True)
        if all("over_control" in result["comparison"] for result in results):
            print(f"| … over the caption-only control | | | | {figures(results, 'over_control')} | |", flush=True)


def of_seeds(chosen: argparse.Namespace, overrides: list[str]) -> list[Settings]:
    """The settings of a variant with each seed."""
    return [
        load_settings(chosen.config, [*chosen.overrides, *overrides, f"finetune.seed={seed}"], os.environ)
        for seed in range(chosen.seeds)
    ]


def run_until(last: str, run: Run) -> dict[str, Artifact]:
    """The artifacts of all stages up to one."""
    stages = list(run.stages)
    return {name: run_stage(name, run) for name in stages[: stages.index(last) + 1]}


def candidates_of(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    return json.loads((artifacts["finetune"].path / "candidates.json").read_text())


def standard(settings: Settings) -> dict[str, list[str]]:
    """The variants that show where a gain comes from."""
    rate = (settings.finetune.learning_rate or RATES[base_kind(settings.model.base)])[0]
    return STANDARD | {
        "half the learning rate": [f"finetune.learning_rate={rate / 2}"],
        "double the learning rate": [f"finetune.learning_rate={rate * 2}"],
    }


def parse_variant(text: str) -> tuple[str, list[str]]:
    """``NAME: a.b=c d.e=f`` as a name and overrides."""
    name, _, overrides = text.partition(":")
    return name.strip(), overrides.split()


def measure(run: Run) -> dict[str, Any]:
    """Deltas, intervals, the candidates, rows and verdict of one variant."""
    artifacts = run_until("evaluate", run)
    comparison = json.loads((artifacts["evaluate"].path / "comparison.json").read_text())
    rows = artifacts["finetune"].manifest.metrics["rows"]
    return {"comparison": comparison, "candidates": candidates_of(artifacts), "rows": rows}


def row(name: str, results: list[dict[str, Any]]) -> str:
    """A row of the table over the base."""
    alphas = ", ".join(f"{result['candidates']['chosen']['alpha']:g}" for result in results)
    verdicts = ", ".join(result["comparison"]["verdict"] for result in results)
    gain = _mean(validation_gains(results))
    return f"| {name} | {results[0]['rows']:,} | {alphas} | {gain} | {figures(results, 'rows')} | {verdicts} |"


def figures(results: list[dict[str, Any]], over: str) -> str:
    """Cells of the metrics: means over the seeds, with the lowest interval in brackets."""
    cells = []
    for kind, _, metric in (name.partition("/") for name in METRICS):
        measured = [row for result in results for row in result["comparison"][over]]
        seeds = [row for row in measured if (row["kind"], row["metric"]) == (kind, metric)]
        lowest = min(seeds, key=lambda row: row["low"], default=None)
        mean = _mean([row["delta"] for row in seeds])
        cells.append(f"{mean} [{lowest['low']:+.2f}, {lowest['high']:+.2f}]" if lowest else "–")
    return " | ".join(cells)


def validation_gains(results: list[dict[str, Any]]) -> list[float]:
    """Points of AO@10 between the chosen α and the base on validation, one per seed; empty if there are no pairs."""
    gains = []
    for result in results:
        chosen = result["candidates"]["chosen"]
        key = chosen["recipe"], chosen["learning_rate"]
        found = {
            point["alpha"]: point.get(AO)
            for one in result["candidates"]["candidates"]
            if (one["recipe"], one["learning_rate"]) == key
            for point in one["alphas"]
        }
        if found[0.0] is not None:
            gains.append(found[chosen["alpha"]] - found[0.0])
    return gains


def _mean(values: list[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.2f}{spread}"


if __name__ == "__main__":
    main()
