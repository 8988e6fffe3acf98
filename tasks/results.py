"""What a finished run leaves behind for people and machines, at paths that stay the same from run to run."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraclip.storage.artifacts import Artifact, ArtifactStore
from paraclip.storage.files import read_json, write_atomic, write_json
from paraclip.storage.manifests import SOURCE
from paraclip.storage.parquet import iter_batches
from paraclip.tasks.history import BY_PROMOTION, BY_RUN, moved
from paraclip_core.errors import ArtifactError, ConfigError
from paraclip_core.evaluation.benchmarks import headline_metrics
from paraclip_core.report.data import few_for_alpha, fewer_than_a_batch, row_totals, trained_on

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run

OVER_CONTROL = ("over_control", "over_control_low", "over_control_high")
ROWS = ("kept", "accepted", "rows", "images", "benchmarks")
"""Metrics that say how much a stage made, of which a manifest's first counts."""
COLUMNS = ("caption", "rewording", "base_ao", "tuned_ao", "tuned_caption_top", "tuned_rewording_top")


@dataclass(frozen=True)
class Result:
    """A run's outcome."""

    name: str
    stages: list[dict[str, Any]]
    """A row per stage: its name, state, fingerprint, seconds, bytes, rows, rejected rows, inputs and path."""
    summary: dict[str, Any] = field(default_factory=dict)
    """What `summary.json` holds; empty where nothing was evaluated."""
    rows: dict[str, int] = field(default_factory=dict)
    """Captions that were asked about, kept and trained on, see :func:`paraclip_core.report.data.row_totals`."""
    warning: str | None = None
    """What a reader must know before any figure; None where there is nothing."""
    report: str | None = None
    summary_path: str | None = None

    @property
    def verdict(self) -> str | None:
        """`promote` or `hold`, None where nothing was evaluated."""
        return self.summary.get("verdict")

    @property
    def decision(self) -> str | None:
        """The verdict and its reason in one line, None where nothing was evaluated."""
        return f"{self.verdict}: {why(self.summary)}" if self.summary else None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "name": self.name,
            "stages": self.stages,
            "summary": self.summary,
            "rows": self.rows,
            "warning": self.warning,
            "verdict": self.verdict,
            "report": self.report,
            "summary_path": self.summary_path,
        }


def gather_result(run: Run, rows: Sequence[Mapping[str, Any]], artifacts: Mapping[str, Artifact]) -> Result:
    """Read the outcome of finished stages, and keep report and summary in `results/<name>/` under the root."""
    settings, store = run.settings, run.store
    folder = store.root / "results" / settings.name
    metrics = {name: artifact.manifest.metrics for name, artifact in artifacts.items()}
    totals = row_totals(metrics)
    warning = fewer_than_a_batch(totals, settings.finetune.batch_size)
    summary: dict[str, Any] = {}
    summary_path = report = None
    if "evaluate" in artifacts:
        source = store.download(artifacts["evaluate"]).path / "summary.json"
        summary, summary_path = read_json(source), folder / "summary.json"
        tuned = metrics.get("finetune", {})
        chosen_on = few_for_alpha(tuned.get("validation_pairs", 0), tuned.get("validation_images", 0))
        notes = filter(None, (warning, untuned(tuned), chosen_on))
        summary |= {"rows": totals, "notes": [*summary.get("notes", ()), *notes]}
        write_json(summary_path, summary)
    if "report" in artifacts:
        report = folder / "report.html"
        _copy(store.download(artifacts["report"]).path / "report.html", report)
    # What was only found, and not needed here, may still lie on an object store alone.
    where = {name: store.uri(artifact) for name, artifact in artifacts.items()}
    plain = [{**row, "path": where.get(row["stage"], row["path"])} for row in rows]
    return Result(settings.name, plain, summary, totals, warning, _text(report), _text(summary_path))


def check_run_name(name: str, store: ArtifactStore) -> None:
    """See before a run that it may keep its model under its name."""
    if (store.channel(name) or {}).get("moved_by") == BY_PROMOTION:
        raise ConfigError(
            f"{name!r} is a channel that only a promotion moves, and a run of this name would move it whatever its "
            f"verdict; give the run another name, with --set name=…"
        )


def record_result(run: Run, rows: Sequence[Mapping[str, Any]], artifacts: Mapping[str, Artifact]) -> Result:
    """Gather the outcome and point the run's own channel at its model."""
    name, store = run.settings.name, run.store
    check_run_name(name, store)
    result = gather_result(run, rows, artifacts)
    if "finetune" in artifacts:
        stages = {stage: artifact.fingerprint for stage, artifact in artifacts.items()}
        reason = why(result.summary) if result.summary else None
        with store.channel_lock(name):
            check_run_name(name, store)
            store.set_channel(name, moved(store.channel(name), stages, result.verdict, BY_RUN, reason))
    return result


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Base, tuned, delta and its interval of each benchmark and metric, headline metrics first.

    Where a control was measured, also the difference from it, `over_control`, and its interval.
    """
    rows = []
    base, tuned = summary["models"]["base"], summary["models"]["tuned"]
    for benchmark, metrics in base.items():
        for metric, value in metrics.items():
            other = tuned.get(benchmark, {}).get(metric)
            interval = summary.get("intervals", {}).get(benchmark, {}).get(metric)
            over = summary.get("over_control", {}).get(benchmark, {}).get(metric)
            rows.append(
                {
                    "benchmark": benchmark,
                    "metric": metric,
                    "base": value,
                    "tuned": other,
                    "delta": summary.get("deltas", {}).get(benchmark, {}).get(metric),
                    "low": None if interval is None else interval[0],
                    "high": None if interval is None else interval[1],
                    **({} if over is None else dict(zip(OVER_CONTROL, over, strict=True))),
                }
            )
    headlines = headline_metrics()

    def headline_first(row: Mapping[str, Any]) -> tuple[Any, ...]:
        metric = row["metric"]
        place = headlines.index(metric) if metric in headlines else len(headlines)
        # So that recall@5 comes before recall@10.
        numbers = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", metric)]
        return place, row["benchmark"], numbers

    return sorted(rows, key=headline_first)


def stage_row(artifact: Artifact, cached: bool, seconds: float) -> dict[str, Any]:
    """A stage's row of the stage table: plain values, the same for people and machines."""
    metrics = artifact.manifest.metrics
    return {
        "stage": artifact.stage,
        "state": "cached" if cached else "made",
        "fingerprint": artifact.fingerprint,
        "seconds": round(seconds, 1),
        "made_in": artifact.manifest.wall_seconds,
        "bytes": artifact.manifest.size(),
        "rows": next((metrics[name] for name in ROWS if name in metrics), None),
        "rejected": _rejected(metrics),
        "reasons": _reasons(metrics),
        "inputs": {name: value for name, value in artifact.manifest.inputs.items() if not name.startswith(SOURCE)},
        "path": str(artifact.path),
    }


def _rejected(metrics: Mapping[str, Any]) -> int:
    """Rows that a stage put among its rejects."""
    rejected = metrics.get("rejected", 0)
    return sum(rejected.values()) if isinstance(rejected, Mapping) else int(rejected)


def _reasons(metrics: Mapping[str, Any]) -> dict[str, int]:
    """Rows that a stage rejected for each reason, the most frequent first; none where it does not count them."""
    rejected = metrics.get("rejected", 0)
    return dict(sorted(rejected.items(), key=lambda item: -item[1])) if isinstance(rejected, Mapping) else {}


def why(summary: Mapping[str, Any]) -> str:
    """The verdict's reason in words, and what was trained on where the summary says it."""
    reasons = summary.get("reason") or summary.get("reasons") or f"the verdict is {summary.get('verdict')}"
    parts = [reasons] if isinstance(reasons, str) else [str(reason) for reason in reasons]
    return "; ".join(filter(None, (*parts, trained_on(summary.get("rows", {})))))


def untuned(metrics: Mapping[str, Any]) -> str | None:
    """What to know and do where fine-tuning left the base as it is; None where it did not."""
    if metrics.get("alpha") != 0:
        return None
    trained = f"{metrics.get('steps')} steps over {metrics.get('rows')} rows"
    return (
        f"tuned is the base itself: with α = 0 held-out wordings agreed best, or every other α lost too much recall "
        f"(alpha_sweep.json of finetune). {trained} were trained; more captions, or other finetune.epochs and "
        f"finetune.learning_rate, may change that"
    )


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {source}: {error.strerror}") from error
    write_atomic(target, lambda file: file.write(content))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def worst_pairs(evaluation: Path, count: int = 20) -> list[dict[str, Any]]:
    """Rows of a table, the lowest average overlap (percent) first, with both ranked lists of image ids.

    Args:
        evaluation: folder of the evaluate artifact.
        count: how many pairs; memory holds no more than these.
    """
    files = sorted((evaluation / "per_query").glob("*.parquet"))
    worst = heapq.nsmallest(count, _pairs(files), key=lambda pair: pair[:3])
    return [
        {
            "benchmark": name,
            "caption": row["caption"],
            "rewording": row["rewording"],
            "base ao@10": round(100 * row["base_ao"], 1),
            "tuned ao@10": round(100 * row["tuned_ao"], 1),
            "images for the caption": ", ".join(row["tuned_caption_top"]),
            "images for the rewording": ", ".join(row["tuned_rewording_top"]),
        }
        for _, name, _, row in worst
    ]


def _pairs(files: list[Path]) -> Iterator[tuple[float, str, int, dict[str, Any]]]:
    for path in files:
        number = 0
        for batch in iter_batches(path, COLUMNS, batch_rows=4096):
            for row in batch.to_pylist():
                yield row["tuned_ao"], path.stem, number, row
                number += 1
