"""The results of a finished run, for people and machines, at paths that stay the same from run to run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from paraclip.storage.artifacts import SOURCE, Artifact
from paraclip.storage.files import read_json, write_atomic, write_json
from paraclip.tasks.corpus import corpus_of
from paraclip_core.config import Settings
from paraclip_core.evaluation.benchmarks import headline_metrics
from paraclip_core.evaluation.verdict.finding import Effect, Finding, for_programs, from_json
from paraclip_core.report.counts import fewer_than_a_batch, row_totals, trained_on

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run

OVER_CONTROL = ("over_control", "over_control_low", "over_control_high")
ROWS = ("kept", "accepted", "rows", "images", "benchmarks")
"""Metrics for the size of a stage's output; the first one in a manifest counts."""


@dataclass(frozen=True)
class Result:
    """A run's outcome."""

    name: str
    stages: list[dict[str, Any]]
    """A row per stage: its name, state, fingerprint, seconds, bytes, rows, rejected rows, inputs and path."""
    summary: dict[str, Any] = field(default_factory=dict)
    """The contents of `summary.json`; empty if nothing was evaluated."""
    rows: dict[str, int] = field(default_factory=dict)
    """Numbers of captions that were requested, kept and trained on, see
    :func:`paraclip_core.report.counts.row_totals`."""
    warning: str | None = None
    """What a reader must know before any figure; None if there is nothing."""
    report: str | None = None
    summary_path: str | None = None

    @property
    def verdict(self) -> str | None:
        """`promote` or `hold`; None if nothing was evaluated."""
        return self.summary.get("verdict")

    @property
    def decision(self) -> str | None:
        """The verdict and its reason in one line; None if nothing was evaluated."""
        return f"{self.verdict}: {self.summary['reason']}" if self.summary else None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"verdict": self.verdict}


def gather_result(
    run: Run, artifacts: Mapping[str, Artifact], rows: Sequence[Mapping[str, Any]] | None = None
) -> Result:
    """Read the outcome of finished stages, and store report and summary in `results/<name>/` under the root.

    Without `rows` of the stage table, every stage counts as cached.
    """
    rows = [stage_row(artifact, True, 0.0) for artifact in artifacts.values()] if rows is None else rows
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
        findings = from_json(summary["findings"])
        findings += training_findings(totals, metrics.get("finetune", {}), settings)
        summary |= {"rows": totals, **for_programs(summary["verdict"], findings)}
        write_json(summary_path, summary)
    if "report" in artifacts:
        report, page = folder / "report.html", store.download(artifacts["report"]).path / "report.html"
        content = page.read_bytes()
        write_atomic(report, lambda file: file.write(content))
    # Artifacts that were found but not read may exist only on an object store.
    where = {name: store.uri(artifact) for name, artifact in artifacts.items()}
    plain = [{**row, "path": where.get(row["stage"], row["path"])} for row in rows]
    return Result(
        settings.name, plain, summary, totals, warning, report and str(report), summary_path and str(summary_path)
    )


def comparison_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Base, tuned, delta and its interval for each benchmark and metric, headline metrics first.

    If a control was measured, also the difference from it, `over_control`, and its interval.
    """
    rows = []
    for benchmark, metrics in summary["models"]["base"].items():
        for metric, value in metrics.items():
            low, high = summary["intervals"][benchmark][metric]
            over = summary.get("over_control", {}).get(benchmark, {}).get(metric)
            rows.append(
                {
                    "benchmark": benchmark,
                    "metric": metric,
                    "base": value,
                    "tuned": summary["models"]["tuned"][benchmark][metric],
                    "delta": summary["deltas"][benchmark][metric],
                    "low": low,
                    "high": high,
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


Row = dict[str, Any]
"""A stage's row of the stage table."""


def stage_row(artifact: Artifact, cached: bool, seconds: float) -> Row:
    """A stage's row of the stage table: plain values, the same for people and machines."""
    metrics = artifact.manifest.metrics
    rejected = metrics.get("rejected", 0)
    reasons = dict(sorted(rejected.items(), key=lambda item: -item[1])) if isinstance(rejected, Mapping) else {}
    return {
        "stage": artifact.stage,
        "state": "cached" if cached else "made",
        "fingerprint": artifact.fingerprint,
        "seconds": round(seconds, 1),
        "made_in": artifact.manifest.wall_seconds,
        "bytes": artifact.manifest.size(),
        "rows": next((metrics[name] for name in ROWS if name in metrics), None),
        "rejected": sum(reasons.values()) if reasons else rejected or 0,
        "reasons": reasons,
        "inputs": {name: value for name, value in artifact.manifest.inputs.items() if not name.startswith(SOURCE)},
        "path": str(artifact.path),
    }


def training_findings(totals: Mapping[str, int], tuned: Mapping[str, Any], settings: Settings) -> list[Finding]:
    """What a reader must know of a fine-tuning with these metrics: on what, whether that is too little, or no gain."""
    held_out = tuned.get("validation_pairs", 0), tuned.get("validation_images", 0)
    options = settings.finetune
    findings = {
        "trained_on": trained_on(totals),
        "fewer_than_a_batch": fewer_than_a_batch(totals, options.batch_size),
        "untuned": untuned(tuned),
        "few_for_choice": corpus_of(settings).few_for_alpha(*held_out, options.alpha.grid),
    }
    effects: dict[str, Effect] = {"trained_on": "explains"}
    return [Finding(code, effects.get(code, "notes"), text) for code, text in findings.items() if text]


def untuned(metrics: Mapping[str, Any]) -> str | None:
    """What to know and do if fine-tuning left the base unchanged; None otherwise."""
    if metrics.get("alpha") != 0:
        return None
    trained = f"{metrics.get('steps')} steps over {metrics.get('rows')} rows"
    return (
        f"tuned is the base itself: none of {metrics.get('candidates')} candidates gained on held-out images without "
        f"losing recall (candidates.json of finetune says what stopped each). Each was trained for {trained}; more "
        "captions may change that"
    )
