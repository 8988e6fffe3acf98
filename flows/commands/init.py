"""`paraclip init`: a commented configuration for a folder of captions and images, or for an index and queries."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraclip.flows.commands.common import JsonOption, print_facts, quoted
from paraclip.flows.commands.init_engine import (
    FEW_SHOT,
    PAPER,
    engine_lines,
    file_lines,
    find_paraphrases,
    find_server,
)
from paraclip.flows.commands.init_index import (
    FEW,
    MANY,
    MANY_QUERIES,
    SHORT,
    check_arguments,
    configuration,
    data_options,
    small_batch,
    survey_log,
)
from paraclip_core.captions.counts import bare_rows, listed_reasons
from paraclip_core.captions.options import USUAL_WORDS
from paraclip_core.errors import ConfigError
from paraclip_core.settings import parse_settings, shipped_configs

if TYPE_CHECKING:
    from paraclip_core.captions.columns import ColumnNames
    from paraclip_core.captions.survey import Survey

BASE_STEPS = 300
"""Steps after which a base of a few thousand captions has learned most; see dev/log."""


def init(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of captions and images.")
    ] = Path(),
    captions: Annotated[str | None, typer.Option(help="File or folder with the captions, relative to FOLDER.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder or tar with the images, relative to FOLDER.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column with the caption or query.")] = None,
    image_column: Annotated[
        str | None, typer.Option(help="Column with the image's file name or the clicked id.")
    ] = None,
    features: Annotated[
        Path | None, typer.Option(help="An index of image features, in place of FOLDER: .npy, Parquet, or shards.")
    ] = None,
    ids: Annotated[Path | None, typer.Option(help="The ids of the index's rows; default: those in the index.")] = None,
    queries: Annotated[Path | None, typer.Option(help="A log of queries, with --features: text or a table.")] = None,
    base: Annotated[str, typer.Option(help="The CLIP model to repair: that of your image index.")] = "built-in",
    name: Annotated[str, typer.Option(help="Name of the run.")] = "mine",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("paraclip.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a folder of captions and images, or at an image index and a log of queries (--features, --queries), and
    write a configuration for it."""
    import yaml

    from paraclip.storage.files import write_atomic
    from paraclip_core.captions.columns import ColumnNames
    from paraclip_core.captions.survey import survey
    from paraclip_core.clip.reference import check_reference

    if output.exists() and not force:
        raise ConfigError(f"{output} exists already; give --force to overwrite it, or another name with --output")
    if base != "built-in":
        check_reference(base)
    columns = ColumnNames(caption=caption_column, image=image_column)
    if features is not None or queries is not None or ids is not None:
        check_arguments(features, ids, queries, base, captions=captions is not None or images is not None)
        assert features is not None and queries is not None
        text, facts = _of_index(features, ids, queries, base, name, columns)
        write_atomic(output, lambda file: file.write(text.encode()))
        print_facts({"configuration": str(output.absolute()), **facts}, as_json)
        return
    for option, place in (("--captions", captions), ("--images", images)):
        if place is not None and not (folder / place).exists():
            raise ConfigError(f"{option}: {folder / place} does not exist")
    overview = survey(folder, captions, images, columns)
    ready, notes = find_paraphrases(Path(overview.data.root), overview.unused), []
    if ready is None:
        server = find_server()
        engine, notes = engine_lines(server), server.notes
    else:
        engine = file_lines(ready)
    text = _configuration(overview, name, base, engine)
    parse_settings(yaml.safe_load(text), f"the configuration for {folder}")
    write_atomic(output, lambda file: file.write(text.encode()))
    facts = _facts(overview, output, ready)
    facts["notes"] += notes
    print_facts(facts, as_json)


def _of_index(
    features: Path, ids: Path | None, queries: Path, base: str, name: str, columns: ColumnNames
) -> tuple[str, dict[str, Any]]:
    """The configuration for an index and a log, and what was seen in them."""
    import yaml

    data = data_options(features, ids, queries, FEW, columns)
    model: dict[str, Any] = {"data": data, "model": {"base": base}}
    log = survey_log(parse_settings(model, "the options"))
    counts, notes = log.counts, log.notices
    data["max_words"] = max(USUAL_WORDS, log.longest)
    if counts.accepted >= MANY_QUERIES:
        data["held_out"] = MANY
    if counts.rejected:
        notes.append(f"rows that are left out: {listed_reasons(counts.rejected)}")
    rows = round(counts.accepted * (1 - data["held_out"]) ** 2)
    server = find_server()
    engine = engine_lines(server, FEW_SHOT if log.words_per_query <= SHORT else PAPER)
    text = _head() + configuration(data, name, base, engine, rows)
    parse_settings(yaml.safe_load(text), f"the configuration for {features}")
    rejected = dict(counts.rejected)
    return text, {
        "queries": {"accepted": counts.accepted, "rejected": rejected},
        "notes": [*notes, *server.notes],
    }


def _facts(overview: Survey, output: Path, ready: str | None) -> dict[str, Any]:
    counts, held = overview.counts, overview.data.held_out
    refused = ": `run` refuses that, see docs/own-captions.md" if overview.shared.refused else ""
    notes = [f"{notice}{refused}" for notice in overview.shared.notices]
    if held:
        notes.append(f"{held:.0%} of the images are held out as val")
    if counts.rejected:
        notes.append(f"rows that are left out: {listed_reasons(counts.rejected)}")
    if overview.long:
        notes.append(
            f"captions of more than {USUAL_WORDS} words: {overview.long}, images with no other caption: "
            f"{overview.only_long}; max_words in the file keeps them all, without it they are left out"
        )
    for split in overview.images.keys() - {"train"}:
        if without := overview.without_image[split]:
            notes.append(bare_rows(split, without, counts.splits[split]))
    if overview.split is None:
        notes.append("too few images are held out to evaluate, so the verdict will be `hold`")
    elif not overview.pairs(overview.split):
        notes.append(
            "no held-out image has two captions, so held-out captions are paraphrased, too, and the verdict goes by "
            "these pairs; see evaluate in the file"
        )
    return {
        "configuration": str(output.absolute()),
        "sources": [source.model_dump(mode="json", exclude_defaults=True) for source in overview.data.sources],
        "rows": {"read": counts.read, "accepted": counts.accepted, "rejected": dict(counts.rejected)},
        "captions": dict(counts.splits),
        "images": {split: len(ids) for split, ids in overview.images.items()},
        "images_missing": overview.missing,
        **({} if ready is None else {"paraphrases": ready}),
        "files_that_name_no_image": [name for name in overview.unused if name != ready],
        "notes": notes,
    }


def _configuration(overview: Survey, name: str, base: str, engine: str) -> str:
    """The configuration as YAML; file names are quoted as JSON, which YAML reads."""
    held = overview.data.held_out
    held_out = f"  held_out: {held}  # share of the images to evaluate; no column says a split\n" if held else ""
    return (
        f"{_head()}"
        f"name: {quoted(name)}  # of the run; search, export and promote go by it\n"
        f"data:\n  root: {quoted(overview.data.root)}  # from where paraclip is called; the paths below start there\n"
        f"  sources:\n{_sources(overview)}{held_out}{_max_words(overview)}"
        f"paraphrase:\n{engine}"
        f"model:\n  # built-in: a small model, trained on these captions. To repair the one of your image index:\n"
        f"  # ViT-B-32:laion2b_s34b_b79k (ARCHITECTURE:TAG of open_clip), hf-hub:ORG/NAME or local-dir:FOLDER\n"
        f"  base: {quoted(base)}\n{_training(overview, base)}{_evaluate(overview)}"
    )


def _head() -> str:
    schema = next(iter(shipped_configs().values())).with_name("schema.json")
    return (
        f"# yaml-language-server: $schema={schema}\n"
        f"# Written by `paraclip init`. All options: `paraclip config schema`.\n"
    )


def _sources(overview: Survey) -> str:
    lines = []
    for source in overview.data.sources:
        options = source.model_dump(mode="json", exclude_defaults=True)
        options["license"] = "unknown"
        lines.append("    - " + "\n      ".join(f"{key}: {quoted(value)}" for key, value in options.items()))
    lines[0] += "  # of rows that state none, e.g. CC-BY-4.0; report and model card name it"
    return "\n".join(lines) + "\n"


def _max_words(overview: Survey) -> str:
    """The limit that keeps the captions that were found, if the usual one does not."""
    if not overview.long:
        return ""
    return f"  max_words: {overview.data.max_words}  # longer captions are left out; usually {USUAL_WORDS}\n"


def _training(overview: Survey, base: str) -> str:
    """Batch sizes and epochs for few captions, which the defaults would give a handful of steps."""
    from paraclip_core.captions.survey import MANY_IMAGES
    from paraclip_core.training.options import BuiltInBaseOptions, FinetuneOptions

    rows, usual, tuning = overview.counts.splits["train"], BuiltInBaseOptions(), FinetuneOptions()
    few = small_batch(rows)
    batch, text = min(usual.batch_size, few), ""
    # A batch has no caption twice.
    if base == "built-in" and (passes := round(BASE_STEPS * min(batch, rows) / max(rows, 1))) > usual.epochs:
        text = (
            f"built_in_base:  # about {BASE_STEPS} steps, of which the best is kept; fewer leave the base near chance\n"
            f"  batch_size: {batch}  # usually {usual.batch_size}\n  epochs: {passes}  # usually {usual.epochs:g}\n"
        )
    fields = (
        [f"batch_size: {few}  # of {rows} captions; usually {tuning.batch_size}"] if few < tuning.batch_size else []
    )
    if len(overview.images.get("train", ())) < MANY_IMAGES:
        share = f"{2 * tuning.validation:g}  # share of the training images that choose recipe, learning rate and α"
        fields.append(f"validation: {share}; usually {tuning.validation:g}")
    return text + ("finetune:\n" + "".join(f"  {line}\n" for line in fields) if fields else "")


def _evaluate(overview: Survey) -> str:
    split = overview.split
    if split is None:
        return "# evaluate:  # needs at least 10 images that are not trained on: split val or test\n"
    pairs = "- {name: paraphrased_queries, kind: paraphrased_retrieval}"
    if not overview.pairs(split):
        pairs = (
            f"# Pairs that people wrote say more: a second caption of each image, or a file with\n"
            f'    # {{"image": …, "caption": …, "paraphrased_query": …}} a line.\n'
            f"    # {pairs.removesuffix('}')}, path: paraphrased_queries.jsonl}}"
        )
    return (
        f"evaluate:\n  split: {split}\n"
        f"  # One caption of each held-out image, 1,000 at most, is paraphrased, too: the benchmark held_out_queries.\n"
        f"  # Another model than that of the training captions makes it stricter: {{model: NAME}}; null: off\n"
        f"  queries: {{}}\n"
        f"  control: true  # the same fine-tuning on captions only, to tell a repair from more training\n"
        f"  benchmarks:\n    {pairs}\n    - {{name: retrieval, kind: retrieval}}\n"
    )
