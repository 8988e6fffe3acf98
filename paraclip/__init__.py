"""Python interface: everything that the command line does to settings, models and indexes, without Prefect.

    import paraclip

    settings = paraclip.load_config("configs/demo.yaml", ["finetune.epochs=2"])
    print(paraclip.plan(settings))
    result = paraclip.run(settings)
    result.to_pandas()

Results render in a notebook (``_repr_html_``) and become data frames with ``to_pandas()``, which needs pandas.
`run`, `expand` and `evaluate` show their progress on standard error; ``progress=paraclip.silent`` keeps them quiet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from html import escape
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paraclip_core.config import MOST_PARAPHRASES, Settings
from paraclip_core.errors import ConfigError
from paraclip_core.progress import Progress, silent
from paraclip_core.text_safety import one_line

if TYPE_CHECKING:
    from paraclip.storage.artifacts import ArtifactStore
    from paraclip.tasks.export import Layout
    from paraclip.tasks.image_index import SearchTarget
    from paraclip_core.clip.encoder import Encoder

__all__ = [
    "Result", "Settings", "Table", "audit", "evaluate", "expand", "export", "load", "load_config", "paraphrase",
    "plan", "run", "search", "silent",
]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Rows with the same columns."""

    rows: Sequence[Mapping[str, Any]]
    title: str = ""

    def to_pandas(self) -> Any:
        """Convert the rows to a data frame.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ConfigError(
                f"to_pandas() needs a package that is not installed: pip install pandas ({one_line(error)})"
            ) from error
        return pandas.DataFrame.from_records([dict(row) for row in self.rows])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join([self.title, *(str(dict(row)) for row in self.rows)]).strip()

    def _repr_html_(self) -> str:
        def shown(value: Any) -> str:
            return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
        cells = ("".join(f"<td>{escape(shown(row.get(name)))}</td>" for name in columns) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<p>{escape(self.title)}</p><table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class Result(Table):
    """A comparison, one row per metric; with more than two models, one per metric and model except the base."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    """``summary.json``: models, deltas, intervals, verdict, reason."""
    report: Path | None = None
    """The report page; with more than two models, the folder with each comparison's page in a folder of its name."""

    @property
    def verdict(self) -> str | None:
        """promote or hold; None if nothing was compared, or several models were: see `comparisons` in `summary`."""
        return self.summary.get("verdict")


def load_config(config: str | Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Settings from a YAML file, overridden by `PARACLIP_ROOT` and `a.b=value` lines; without a file, the defaults.

    Raises:
        ConfigError: the file cannot be read, or an option is wrong.
    """
    from paraclip_core.settings import PARAMETER, load_settings

    return load_settings(config, overrides, os.environ, PARAMETER)


def plan(settings: Settings) -> Table:
    """For each stage, whether it is finished, why it would run, and what it would cost. Nothing runs.

    Raises:
        ParaclipError: a source is missing, or options contradict each other.
    """
    from paraclip.tasks.plan import plan_run
    from paraclip.tasks.run.run import Run

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
    from paraclip.tasks.results import comparison_rows
    from paraclip.tasks.run.drive import InTurn, drive
    from paraclip.tasks.run.run import Run

    wanted = Run(settings)
    tell = _say if progress is None else lambda line: None
    outcome = drive(wanted, InTurn(wanted, lambda name: _progress_of(name, progress), _say, tell))
    figures = comparison_rows(outcome.summary) if outcome.summary else []
    title = f"{settings.name}: {outcome.decision or 'nothing was evaluated'}"
    return Result(figures, title, outcome.summary, Path(outcome.report) if outcome.report else None)


def paraphrase(captions: Sequence[str], settings: Settings | None = None, keep: bool = False) -> Table:
    """Both paraphrases of a few captions, as a run would make and judge them; None if no answer is good enough.

    Args:
        captions: raw captions.
        settings: engine, prompt and filters; by default the embedded engine.
        keep: put the answers into the root's answers cache.

    Raises:
        ConfigError: `captions` is a single text, or one of its entries is not a text.
        EngineError: the engine cannot be asked.
    """
    from paraclip.tasks.run.run import Run
    from paraclip.tasks.trial import try_captions
    from paraclip_core.clip.encoder import need_texts

    texts = list(dict.fromkeys(need_texts(captions, "captions")))
    trial = try_captions(Run(settings or load_config()), texts, keep, lambda _: None)
    none = {"paraphrase_1": None, "paraphrase_2": None}
    rows = [
        {"caption": caption.caption, **paraphrase}
        for caption in trial.captions
        for paraphrase in [asdict(paraphrase) for paraphrase in caption.paraphrases] or [none]
    ]
    return Table(rows, f"{trial.engine}, {trial.model}")


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
    from paraclip.tasks.expansion import expand as expand_queries
    from paraclip.tasks.run.run import Run
    from paraclip_core.clip.encoder import need_texts

    texts = _queries(need_texts(queries, "queries"))
    if not isinstance(paraphrases, Integral) or not 1 <= paraphrases <= MOST_PARAPHRASES:
        raise ConfigError(f"paraphrases is {paraphrases!r}; expected a number from 1 to {MOST_PARAPHRASES}")
    with _progress_of("expand", progress) as shown:
        run = Run(settings or load_config())
        expansion, vectors = expand_queries(run, str(model), texts, int(paraphrases), shown)
    rows = [
        {"query": query, "paraphrases": list(others), "vector": vector}
        for query, others, vector in zip(expansion.queries, expansion.paraphrases, vectors, strict=True)
    ]
    facts = expansion.facts()
    return Table(rows, f"{facts['expanded']} of {facts['queries']} queries expanded, {facts['asked']} requests asked")


def evaluate(
    models: Mapping[str, str],
    benchmarks: Sequence[str],
    images: Sequence[str] = (),
    split: str | None = None,
    device: str = "auto",
    root: str | Path | None = None,
    out: str | Path | None = None,
    report: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Compare models with the first of them, on benchmarks in their published formats.

    Args:
        models: two or more by the names that the tables give them; each is a channel, an artifact, a release folder, a
            name that open_clip knows, or ``expanded:HEADS.parquet:MODEL`` with one of these.
        benchmarks: ``NAME=PATH`` or ``LABEL:KIND=PATH`` each, as `paraclip evaluate` takes them.
        images: folder, tar or Parquet with the benchmarks' images, ``NAME=PATH`` for those of one benchmark.
        split: split to use from files with several.
        device: auto, cpu, cuda or cuda:N.
        root: where channels and artifacts are looked for, and results are kept; default: `PARACLIP_ROOT`, or runs.
        out: folder of the results; by default a new one under the root.
        report: write a page for each comparison next to the results.
        progress: called with the progress, which then is not shown on standard error.

    Raises:
        ConfigError: a name or a path cannot be used.
        BenchmarkError: a benchmark is absent or not in its published format.
        ModelError: a model cannot be loaded.
    """
    from paraclip.tasks.comparison import compare_and_write, named_models, pairs, with_images
    from paraclip.tasks.results import comparison_rows
    from paraclip_core.clip.encoder import need_texts
    from paraclip_core.evaluation.prepare import parse_benchmark

    parsed = [parse_benchmark(text) for text in need_texts(benchmarks, "benchmarks")]
    chosen = with_images(parsed, need_texts(images, "images"))
    named = named_models([f"{name}={model}" for name, model in models.items()])
    folder = None if out is None else Path(out)
    facts: dict[str, Any] = {"split": split, "device": device, "report": report}
    with _progress_of("evaluate", progress) as shown:
        folder, summary = compare_and_write(_store(root), named, chosen, folder, **facts, progress=shown)
    if "comparisons" not in summary:
        page = folder / "report.html" if report else None
        return Result(comparison_rows(summary), f"{summary['verdict']}: {summary['reason']}", summary, page)
    comparisons = pairs(summary)
    rows = [{"model": name, **row} for name, pair in comparisons.items() for row in comparison_rows(pair)]
    title = "; ".join(f"{name}: {one['verdict']}" for name, one in comparisons.items())
    return Result(rows, title, summary, folder if report else None)


def search(
    query: str | Sequence[str],
    model: str | Path,
    features: str | Path | None = None,
    ids: str | Path | None = None,
    count: int = 10,
    base: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
) -> Table:
    """The nearest images of one text or several, by the base and by the tuned model.

    Args:
        query: a text, or a list of them; each has its own rows, and the column `query` says whose they are.
        model: a channel, an artifact, a release folder, or a name that open_clip knows.
        features: an index of your own (.npy, Parquet, clip-retrieval); default: the run's images.
        ids: the ids of its rows.
        count: number of images.
        base: the model before tuning, if no run records it.
        root: where channels and artifacts are looked for; default: `PARACLIP_ROOT`, or runs.
        device: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: a query is empty or not a text, or `count` is not a number of images.
        ModelError: the index was made with another image encoder.
        InputError: the index cannot be read.
    """
    from paraclip.tasks.image_index import search_each

    queries = _queries(query)
    if not isinstance(count, Integral) or count < 1:
        raise ConfigError(f"count is {count!r}; expected a number of images, 1 or more")
    ranked = search_each(_target(model, root, base, features, ids), queries, int(count), device)
    rows = [
        {"query": text, "rank": one.rank, "base": one.image_id, "base_score": one.score}
        | {"tuned": two.image_id, "tuned_score": two.score}
        for text, hits in zip(queries, ranked, strict=True)
        for one, two in zip(hits["base"], hits["tuned"], strict=True)
    ]
    if not isinstance(query, str):
        return Table(rows, f"queries: {len(queries)}")
    return Table([{name: row[name] for name in row if name != "query"} for row in rows], query)


def audit(
    model: str | Path,
    queries: Sequence[str | tuple[str, str]] | None = None,
    features: str | Path | None = None,
    ids: str | Path | None = None,
    base: str | Path | None = None,
    root: str | Path | None = None,
    device: str = "cpu",
) -> Table:
    """How much an index agrees with itself when queries are reworded: AO@10 and JS@10 in percent, with intervals.

    Of a tuned model also how much of the base's first ten stays for the same query (`overlap@10`), and the share of
    queries with another first image (`first_image_changes`), in percent.

    Args:
        model: as for `search`.
        queries: each a query, which rules reword (case, plural, article, word order, punctuation, typo), or a pair of a
            query and its paraphrased query; by default captions of the index's images, or names of things that they
            show.
        features: as for `search`.
        ids: as for `search`.
        base: as for `search`.
        root: as for `search`.
        device: as for `search`.

    Raises:
        ModelError: the index was made with another image encoder.
        BenchmarkError: an entry of `queries` is neither a text nor a pair of texts.
    """
    from paraclip.tasks.audit import audit as measure

    result = measure(_target(model, root, base, features, ids), queries, device)
    rows = [
        {"model": name, "metric": f"{metric}@{result.depth}", "mean": value.mean, "low": value.low, "high": value.high}
        for name, figures in [*result.figures.items(), *([("difference", result.gain)] if result.gain else [])]
        for metric, value in figures.items()
    ]
    rows += [
        {"model": name, "metric": f"ao@{result.depth}, {kind}", "mean": value}
        for kind, values in result.kinds.items()
        for name, value in values.items()
    ]
    if result.churn is not None:
        shares = {name: value for name, value in result.churn.summary().items() if name != "queries"}
        rows += [{"model": "difference", "metric": name, "mean": value} for name, value in shares.items()]
    return Table(rows, f"{result.queries} queries, {result.images} images")


def export(
    model: str | Path, folder: str | Path, layout: Layout = "open_clip", root: str | Path | None = None
) -> list[str]:
    """Write a model for another library and return the folder's files. `root` is as for `search`.

    Raises:
        ModelError: the model cannot be loaded, or the layout has no such architecture.
        ConfigError: the folder is not empty.
    """
    from paraclip.tasks.export import export_model
    from paraclip.tasks.models import find_release

    store = _store(root)
    return export_model(find_release(str(model), store), Path(folder), layout, store)


def load(model: str | Path, root: str | Path | None = None, device: str = "cpu") -> Encoder:
    """A model that encodes texts and images: `.encode_texts([…])`, `.encode_images([…])`; `.model` is open_clip's.

    Args:
        model: as for `search`.
        root: as for `search`.
        device: as for `search`.

    Raises:
        ModelError: it cannot be loaded.
    """
    from paraclip.tasks.models import find_release
    from paraclip_core.clip.encoder import Encoder
    from paraclip_core.clip.load import load_clip
    from paraclip_core.clip.model import pick_device

    return Encoder(**vars(load_clip(str(find_release(str(model), _store(root))), pick_device(device))))


def _queries(query: str | Sequence[str]) -> list[str]:
    from paraclip_core.clip.encoder import need_texts

    queries = [query] if isinstance(query, str) else need_texts(query, "queries")
    if not queries:
        raise ConfigError("the list of queries is empty; give at least one")
    for n, text in enumerate(queries):
        if not text.strip():
            where = "the query" if isinstance(query, str) else f"entry {n} of the queries"
            raise ConfigError(f"{where} is empty; say in words what to look for")
    return queries


def _store(root: str | Path | None) -> ArtifactStore:
    from paraclip.storage.roots import open_store

    # The same root as the command line's and that of `run`.
    return open_store(load_config().run.root if root is None else root)


def _target(
    model: str | Path,
    root: str | Path | None,
    base: str | Path | None,
    features: str | Path | None,
    ids: str | Path | None,
) -> SearchTarget:
    from paraclip.tasks.image_index import search_target

    paths = [None if path is None else Path(path) for path in (features, ids)]
    return search_target(str(model), _store(root), None if base is None else str(base), *paths)


@contextmanager
def _progress_of(name: str, progress: Progress | None) -> Iterator[Progress]:
    from paraclip.tasks.run.status import shown_progress

    if progress is not None:
        yield progress
        return
    with shown_progress(name, _say) as shown:
        yield shown


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
