"""`paraclip expand`: paraphrases of queries, and their mean features, for a search without a language model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    ModelOption,
    RunRootOption,
    SetOption,
    print_facts,
    settings_from,
)
from paraclip.tasks.expansion import expand as expanded
from paraclip.tasks.expansion import write_heads
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.status import shown_progress
from paraclip_core.config import MOST_PARAPHRASES
from paraclip_core.errors import ConfigError
from paraclip_core.evaluation.query_file import read_single_queries
from paraclip_core.text_safety import printable


def expand(
    files: Annotated[
        list[Path],
        typer.Argument(
            exists=True,
            dir_okay=False,
            metavar="FILE...",
            help="Queries: text with one per line, or CSV, TSV, JSONL or Parquet with a column query (or caption).",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", dir_okay=False, help="Parquet file to write; an existing one is replaced.")
    ],
    model: ModelOption,
    paraphrases: Annotated[
        int, typer.Option(min=1, max=MOST_PARAPHRASES, help="How many paraphrases to ask for a query.")
    ] = 3,
    config: ConfigOption = None,
    set_: SetOption = None,
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the mean feature of each query and its paraphrases, by which any index of the model can be searched.

    Answers that the root's answers cache holds are used, and new ones are kept there: whatever ends the command, a
    second call asks only what is missing. A query without an accepted paraphrase has its own feature.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"--out {out}: expected a name that ends with .parquet")
    run = Run(settings_from(config, set_, root))
    queries = list(dict.fromkeys(query for file in files for query in read_single_queries(file)))
    with shown_progress("expand", lambda line: typer.echo(printable(line), err=True)) as progress:
        expansion, vectors = expanded(run, model, queries, paraphrases, progress)
    write_heads(out, run, model, expansion, vectors)
    print_facts({"heads": str(out), **expansion.facts()}, as_json)
