"""Runs in Python: settings, plan, run, and the language model on a few texts. Nothing here imports torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Integral
from pathlib import Path

from paraclip.tables import Result, Table
from paraclip.tasks import expansion as expansions
from paraclip.tasks.plan import plan_run
from paraclip.tasks.results import comparison_rows
from paraclip.tasks.run.drive import InTurn, drive
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.status import shown_progress
from paraclip.tasks.trial import try_captions
from paraclip_core.config import MOST_PARAPHRASES, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.progress import Progress, silent
from paraclip_core.settings import PARAMETER, load_settings
from paraclip_core.text_lists import need_texts


def load_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file, overridden by `PARACLIP_ROOT` and `a.b=value` lines; without a file, the defaults.

    Raises:
        ConfigError: the file cannot be read, or an option is wrong.
    """
    return load_settings(config, overrides, os.environ, PARAMETER)


def plan(settings: Settings) -> Table:
    """For each stage, whether it is finished, why it would run, and what it would cost. Nothing runs.

    Raises:
        ParaclipError: a source is missing, or options contradict each other.
    """
    planned = plan_run(Run(settings))
    return Table([asdict(stage) for stage in planned.stages], "; ".join(planned.notes))


def run(settings: Settings, progress: Progress | None = None) -> Result:
    """Run every stage that is not finished, one after the other, each in its own process.

    Args:
        settings: the settings of the run.
        progress: called with each stage's progress, which then is not shown on standard error.

    Raises:
        ParaclipError: what a stage raised; call it again to go on from there.
    """
    wanted = Run(settings)
    tell = _say if progress is None else lambda line: None
    outcome = drive(wanted, InTurn(wanted, lambda name: progress_of(name, progress), _say, tell))
    figures = comparison_rows(outcome.summary) if outcome.summary else []
    title = f"{settings.name}: {outcome.decision or 'nothing was evaluated'}"
    return Result(figures, title, outcome.summary, Path(outcome.report) if outcome.report else None)


def paraphrase(captions: Sequence[str], settings: Settings | None = None) -> Table:
    """Both paraphrases of a few captions, as a run would make and judge them; None if no answer is good enough.

    Answers that the root's answers cache holds are used, and new ones are kept there.

    Args:
        captions: raw captions.
        settings: engine, prompt and filters; by default the embedded engine.

    Raises:
        ConfigError: `captions` is a single text, or one of its entries is not a text.
        EngineError: the engine cannot be asked.
    """
    texts = list(dict.fromkeys(need_texts(captions, "captions")))
    trial = try_captions(Run(settings or load_config()), texts, silent)
    rows = [
        {"caption": caption.caption, "paraphrase_1": first, "paraphrase_2": second}
        for caption in trial.captions
        for first, second in caption.pairs or [(None, None)]
    ]
    return Table(rows, ", ".join(trial.metrics[name] for name in ("engine", "model") if trial.metrics))


def expand(
    queries: Sequence[str],
    model: str | Path,
    settings: Settings | None = None,
    paraphrases: int = 3,
    progress: Progress | None = None,
) -> Table:
    """The mean feature of each query and its paraphrases: columns `query`, `paraphrases` and `vector`.

    Answers that the root's answers cache holds are used, and new ones are kept there.

    Args:
        queries: texts to search for; each has one row.
        model: as for `search`; it embeds queries and paraphrases.
        settings: engine, prompts, filters, spending cap, root and device; by default the embedded engine.
        paraphrases: how many to ask for a query, 16 at most. One of which none is accepted has its own feature.
        progress: called with the progress, which then is not shown on standard error.

    Raises:
        ConfigError: a query is empty or not a text, or `paraphrases` is not a number from 1 to 16.
        ModelError: the model cannot be loaded.
        EngineError: the engine cannot be asked, or the spending cap is reached; what was answered is kept.
    """
    texts = checked_queries(need_texts(queries, "queries"))
    if not isinstance(paraphrases, Integral) or not 1 <= paraphrases <= MOST_PARAPHRASES:
        raise ConfigError(f"paraphrases is {paraphrases!r}; expected a number from 1 to {MOST_PARAPHRASES}")
    with progress_of("expand", progress) as shown:
        run = Run(settings or load_config())
        expansion, vectors = expansions.expand(run, str(model), texts, int(paraphrases), shown)
    rows = [
        {"query": query, "paraphrases": list(others), "vector": vector}
        for query, others, vector in zip(expansion.queries, expansion.paraphrases, vectors, strict=True)
    ]
    facts = expansion.facts()
    return Table(rows, f"{facts['expanded']} of {facts['queries']} queries expanded, {facts['asked']} requests asked")


def checked_queries(query: str | Sequence[str]) -> list[str]:
    queries = [query] if isinstance(query, str) else need_texts(query, "queries")
    if not queries:
        raise ConfigError("the list of queries is empty; give at least one")
    for n, text in enumerate(queries):
        if not text.strip():
            where = "the query" if isinstance(query, str) else f"entry {n} of the queries"
            raise ConfigError(f"{where} is empty; say in words what to look for")
    return queries


@contextmanager
def progress_of(name: str, progress: Progress | None) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    with shown_progress(name, _say) as shown:
        yield shown


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
