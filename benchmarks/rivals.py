"""Cheap rivals of a tuned text encoder on a run's benchmarks: what each gains over the base, and its time.

    python benchmarks/rivals.py -c configs/flickr8k.yaml [--set a.b=c] [--paraphrases FILE]

* `linear map`: a matrix on the base's feature of a query, by ridge regression towards the identity, from each training
  caption to the mean of its image's captions. Its ridge is chosen on the images that fine-tuning holds out, by AO@10 +
  recall@10. No encoder is touched.
* `mean of n`: the mean of the base's features of a query and of n - 1 paraphrases, which a language model has to
  write for each query. FILE (Parquet, JSONL or CSV) has `caption` and `paraphrase`, one row each; then only captions
  in it are searched for, and `evaluate.benchmarks` should name pairs of such texts.
* `normalized`: the query in lower case and without its full stop.
* `captions alone`, `paraphrases`: the run's control and tuned model, with FILE also with the mean of 4 paraphrases.

The time is that of computing a query's feature, one query after another; a language model's time comes on top.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record import arguments

from paraclip.storage.artifacts import Artifact
from paraclip.tasks.models import base_reference
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip.tasks.stages.evaluate import benchmark_tasks, captions_of, stored_split
from paraclip.tasks.training.data import Images, hold_out
from paraclip_core.clip.expansion import mean_features
from paraclip_core.config import Settings
from paraclip_core.evaluation.base import Captions, Encoder, Measured, TextEncoder, unique_features
from paraclip_core.evaluation.benchmarks import Stored
from paraclip_core.evaluation.encoder import ModelEncoder
from paraclip_core.evaluation.options import BenchmarkOptions
from paraclip_core.evaluation.prepare import Prepared, prepare
from paraclip_core.evaluation.published import records
from paraclip_core.evaluation.rows import Row, compared_rows
from paraclip_core.evaluation.run import measure, paired
from paraclip_core.settings import load_settings

METRICS = {
    "query_pairs/ao@10": "paraphrased queries AO@10", "query_pairs/hard_negative_ao@10": "hard negatives AO@10",
    "query_pairs/margin": "margin",
    "paraphrased_retrieval/ao@10": "captions AO@10", "retrieval/text_to_image_recall@10": "recall@10",
    "sts/spearman": "STS",
}  # fmt: skip
"""Columns: a benchmark's kind and metric."""
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Ridges to try, in mean eigenvalues of the captions' features."""
TIMED = 100


class Rival:
    """The base with other features of queries."""

    def __init__(self, base: ModelEncoder, encode: TextEncoder) -> None:
        self._encode, self.images, self.image_encoder_hash = encode, base.images, base.image_encoder_hash

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [n, d], rows of length 1."""
        return self._encode(texts)


def main() -> None:
    """Measure each rival and print a Markdown table."""
    parser = arguments(__doc__)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    parser.add_argument("--paraphrases", type=Path)
    chosen = parser.parse_args()
    settings = load_settings(chosen.config, chosen.overrides, os.environ)
    run = Run(settings)
    stages = list(run.stages)
    inputs = {name: run_stage(name, run) for name in stages[: stages.index("control") + 1]}
    base = ModelEncoder(base_reference(settings, inputs), settings.run.device)
    everything, others = stored_split(settings, inputs), read_paraphrases(chosen.paraphrases)
    stored = everything
    if others:  # few captions, among all images
        captions = those_in(everything.captions, others)
        stored = Stored(captions, lambda ids: everything.pool(everything.captions.image_ids))
    tasks, _ = benchmark_tasks(settings, stored)
    rivals: dict[str, Encoder] = {"linear map": linear_map(settings, inputs, base, everything)}
    rivals |= {f"mean of {n}": Rival(base, mean_of(base, others, n)) for n in (2, 4) if others}
    rivals |= {"normalized": Rival(base, lambda texts: base.texts([text.lower().rstrip(" .") for text in texts]))}
    released = {"caption-only control": "control", "paraphrases": "finetune"}
    tuned = {name: ModelEncoder(str(inputs[stage].path / "release")) for name, stage in released.items()}
    rivals |= tuned
    rivals |= {f"{name}, mean of 4": Rival(model, mean_of(model, others, 4)) for name, model in tuned.items() if others}
    gains = gains_over(base, tasks, settings)
    print(f"| over the base | {' | '.join(METRICS.values())} | ms a query |\n|---|{'---|' * len(METRICS)}---|")
    for name, rival in rivals.items():
        rows = gains(rival)
        cells = [next((cell(row) for row in rows if f"{row.kind}/{row.metric}" == metric), "–") for metric in METRICS]
        print(f"| {name} | {' | '.join(cells)} | {milliseconds(rival, stored.captions.captions):.1f} |", flush=True)


def gains_over(base: Encoder, tasks: Sequence[Prepared], settings: Settings) -> Callable[[Encoder], tuple[Row, ...]]:
    """A function that compares every figure of a rival with the base's, which is measured once."""

    def compute(model: str, benchmark: str, work: Callable[[], Measured]) -> Measured:
        return work()

    of_base = measure({"base": base}, tasks, compute)

    def gains(rival: Encoder) -> tuple[Row, ...]:
        outcomes = {**of_base, **measure({"rival": rival}, tasks, compute)}
        return compared_rows(paired(tasks, outcomes, "base", "rival"))

    return gains


def cell(row: Row) -> str:
    return f"{row.delta:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"


def milliseconds(encoder: Encoder, texts: Sequence[str]) -> float:
    """Median time of one text's feature."""
    times = []
    for text in texts[:TIMED]:
        start = time.perf_counter()
        encoder.texts([text])
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def linear_map(settings: Settings, inputs: Mapping[str, Artifact], base: ModelEncoder, stored: Stored) -> Rival:
    """The best ridge's map: argmin over W of |X W - Y|² / n + λ |W - I|², X captions and Y their images' means."""
    captions, images = captions_of(inputs["ingest"].path / "captions", "train"), Images(inputs["features"].path)
    held_out = hold_out(inputs["ingest"].path / "captions", images, settings.finetune.validation)
    rows = images.find(captions.image_ids)
    validated = Captions(*picked(captions, held_out.position(rows) >= 0), "held out")
    ids, texts = picked(captions, held_out.trains(rows))
    x, index = unique_features(base.texts, texts)
    x = x[index].astype(np.float64)
    owner = np.unique(ids, return_inverse=True)[1]
    sums = np.zeros((owner.max() + 1, x.shape[1]))
    np.add.at(sums, owner, x)
    y = unit(sums)[owner]
    square, cross, identity = x.T @ x / len(x), x.T @ y / len(x), np.eye(x.shape[1])
    kinds = ("paraphrased_retrieval", "retrieval")
    tasks = [prepare(BenchmarkOptions(name=k, kind=k), None, replace(stored, captions=validated)) for k in kinds]
    gains, wanted = gains_over(base, tasks, settings), {"ao@10", "text_to_image_recall@10"}
    maps: list[tuple[float, Rival]] = []
    for ridge in RIDGES:
        penalty = ridge / x.shape[1] * identity
        matrix = np.linalg.solve(square + penalty, cross + penalty).astype(np.float32)
        rival = Rival(base, lambda texts, matrix=matrix: unit(base.texts(texts) @ matrix))
        gained = [row.delta for row in gains(rival) if row.metric in wanted]
        print(f"linear map, ridge {ridge:g}: {sum(gained):+.2f} on held-out images", flush=True)
        maps.append((sum(gained), rival))
    return max(maps, key=lambda entry: entry[0])[1]


def picked(captions: Captions, which: NDArray[np.bool_]) -> tuple[list[str], list[str]]:
    """Image ids and texts of some captions."""
    rows = np.flatnonzero(which).tolist()
    return [captions.image_ids[row] for row in rows], [captions.captions[row] for row in rows]


def mean_of(base: ModelEncoder, paraphrases: Mapping[str, Sequence[str]], n: int) -> TextEncoder:
    """Features of texts with n - 1 of their paraphrases each."""
    return lambda texts: mean_features(base.texts, [[text, *paraphrases.get(text, ())[: n - 1]] for text in texts])


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def read_paraphrases(path: Path | None) -> dict[str, list[str]]:
    """The paraphrases of each text."""
    others: dict[str, list[str]] = {}
    for _, row in records(path) if path else ():
        others.setdefault(row["caption"], []).append(row["paraphrase"])
    return others


def those_in(captions: Captions, texts: Mapping[str, Sequence[str]]) -> Captions:
    """The captions that are among the texts."""
    return Captions(*picked(captions, np.array([text in texts for text in captions.captions])), captions.split)


if __name__ == "__main__":
    main()
