"""Models and image indexes in Python: compare, search, audit, export and load. These need torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

from paraclip.runs import checked_queries, load_config, progress_of
from paraclip.storage.artifacts import ArtifactStore
from paraclip.storage.roots import open_store
from paraclip.tables import Result, Table
from paraclip.tasks import audit as audits
from paraclip.tasks.comparison import compare_and_write, named_models, pairs, with_images
from paraclip.tasks.export import Layout, export_model
from paraclip.tasks.image_index import SearchTarget, search_each, search_target
from paraclip.tasks.models import find_release
from paraclip.tasks.results import comparison_rows
from paraclip_core.clip.encoder import Encoder
from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import pick_device
from paraclip_core.errors import ConfigError
from paraclip_core.evaluation.prepare import parse_benchmark
from paraclip_core.progress import Progress
from paraclip_core.text_lists import need_texts


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
    parsed = [parse_benchmark(text) for text in need_texts(benchmarks, "benchmarks")]
    chosen = with_images(parsed, need_texts(images, "images"))
    named = named_models([f"{name}={model}" for name, model in models.items()])
    folder = None if out is None else Path(out)
    facts: dict[str, Any] = {"split": split, "device": device, "report": report}
    with progress_of("evaluate", progress) as shown:
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
    queries = checked_queries(query)
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
    result = audits.audit(_target(model, root, base, features, ids), queries, device)
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
    return Encoder(**vars(load_clip(str(find_release(str(model), _store(root))), pick_device(device))))


def _store(root: str | Path | None) -> ArtifactStore:
    # The same root as the command line's and that of `run`.
    return open_store(load_config().run.root if root is None else root)


def _target(
    model: str | Path,
    root: str | Path | None,
    base: str | Path | None,
    features: str | Path | None,
    ids: str | Path | None,
) -> SearchTarget:
    paths = [None if path is None else Path(path) for path in (features, ids)]
    return search_target(str(model), _store(root), None if base is None else str(base), *paths)
