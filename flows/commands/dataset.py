"""`paraclip export-dataset`: finished paraphrases as a folder that may be published."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paraclip.flows.commands.common import (
    ConfigOption,
    JsonOption,
    PrivateOption,
    PushOption,
    RunRootOption,
    SetOption,
    print_json,
    say,
    settings_from,
)

if TYPE_CHECKING:
    from paraclip.storage.artifacts import Artifact
    from paraclip.tasks.export import ExportedDataset

SHOWN = 10


def export_dataset(
    folder: Annotated[Path, typer.Argument(help="New folder.")],
    config: ConfigOption = None,
    set_: SetOption = None,
    artifact: Annotated[
        str | None,
        typer.Option(
            "--artifact", "-a", help="The paraphrases: the start of a fingerprint, STAGE/START, or a run's channel."
        ),
    ] = None,
    opt_outs: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Rows to leave out: a caption id, an image id or a caption a line."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Title of the data card.")] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Language code of the captions, `en` if none is given; may be repeated.")
    ] = None,
    contact: Annotated[str, typer.Option(help="Where the card says to ask for removal, e.g. an e-mail address.")] = "",
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG/NAME", help="Model on the hub that was tuned on it, for the card; may be repeated."),
    ] = None,
    push: PushOption = None,
    private: PrivateOption = False,
    root: RunRootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write finished paraphrases as Parquet shards and a data card, for `datasets.load_dataset`, DuckDB and the hub."""
    from paraclip.storage.roots import check_root, open_store
    from paraclip.tasks.export import check_push, find_paraphrases, push_folder, read_opt_outs
    from paraclip.tasks.export import export_dataset as write

    if push is not None:
        check_push(push)
    settings = settings_from(config, set_)
    store = open_store(settings.run.root if root is None else root)
    check_root(store)
    given = settings if config is not None or set_ else None
    paraphrases = find_paraphrases(store, artifact, given)
    named = name or (settings.name if config is not None else None)
    entries = None if opt_outs is None else read_opt_outs(opt_outs)
    written = write(
        paraphrases,
        folder,
        store,
        name=named,
        settings=given,
        opt_outs=entries,
        languages=language or ["en"],
        contact=contact,
        models=model or (),
    )
    address = None if push is None else push_folder(folder, push, private)
    if as_json:
        pushed = {} if address is None else {"pushed": address}
        print_json(_facts(paraphrases, written, folder.absolute(), len(entries or ())) | pushed)
        return
    _print(written, folder, None if entries is None else len(entries))
    if address is not None:
        say(f"pushed to {address}")


def _facts(found: Artifact, written: ExportedDataset, folder: Path, opt_outs: int) -> dict[str, Any]:
    whole = {"strictest": written.license.strictest, "class": written.license.kind, "hub": written.license.hub}
    return {
        "folder": str(folder),
        "files": written.files,
        "artifact": f"{found.stage}/{found.fingerprint}",
        "rows": written.rows,
        "license": whole,
        "opt_outs": {"entries": opt_outs, "rows": written.left_out, "unmatched": written.unmatched},
        "notes": written.license.notes,
    }


def _print(written: ExportedDataset, folder: Path, opt_outs: int | None) -> None:
    counts = ", ".join(f"{count} {split}" for split, count in written.rows.items())
    say(f"{counts} rows in {folder}, under {', '.join(written.license.strictest)} ({written.license.kind})")
    if opt_outs is not None:
        say(f"{written.left_out} rows left out by {opt_outs} opt-outs")
    for entry in written.unmatched[:SHOWN]:
        say(f"this opt-out names no row: {entry}")
    if len(written.unmatched) > SHOWN:
        say(f"and {len(written.unmatched) - SHOWN} more; --json names all")
    for note in written.license.notes:
        say(f"before you publish: {note}")
    say(f'Load it with\n  datasets.load_dataset("{folder.absolute()}")')
