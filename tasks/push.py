"""Upload of an exported model or data set to the Hugging Face hub.

The hub's token comes from huggingface_hub's own login (`hf auth login`, or HF_TOKEN) and the address from its
HF_ENDPOINT. Both stay with that library: nothing here reads, writes or prints the token.
"""

from __future__ import annotations

import re
from pathlib import Path

from httpx import HTTPError
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from paraclip_core.errors import ConfigError, ParaclipError
from paraclip_core.text_safety import one_line

CARD = "README.md"
HERE = "PATH_OF_THIS_FOLDER"
"""Placeholder for its location in an exported card."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
SHARD = re.compile(r"data/train-\d+-of-\d+\.parquet")


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Push a folder written by `export` or `export-dataset` (with Parquet in `data`); returns its address.

    The repository is created if it does not exist, as a private one if `private`.
    """
    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder} holds no {CARD}; expected a folder that `paraclip export` or `paraclip export-dataset` wrote"
        )
    kind = "dataset" if any(folder.glob("data/*.parquet")) else "model"
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationAdd(*file) for file in files.items()]
    api = HfApi(library_name="paraclip")
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        card = published_card((folder / CARD).read_text("utf-8"), url.repo_id)
        operations.append(CommitOperationAdd(CARD, card.encode()))
        # Shards of an earlier export would be read beside those of this one, opted-out rows included.
        there = api.list_repo_files(url.repo_id, repo_type=kind) if kind == "dataset" else ()
        operations += [CommitOperationDelete(name) for name in there if SHARD.fullmatch(name) and name not in files]
        api.create_commit(
            url.repo_id, operations, repo_type=kind, commit_message=f"{kind.capitalize()} exported by paraclip"
        )
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(f"the hub refuses to write to {repo}: {one_line(error)}; {LOGIN}") from error
        raise ParaclipError(f"the hub did not accept {folder} as {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # The library wraps upload errors in several ways.
        raise ParaclipError(f"{folder} could not be pushed to {repo}: {one_line(error)}; try again") from error
    return str(url)


def published_card(card: str, repo: str) -> str:
    """The card, with examples that load from the hub instead of a folder."""
    card = card.replace(f"local-dir:{HERE}", f"hf-hub:{repo}")
    card = re.sub(rf"'{HERE}/(data/[^']*)'", rf"'hf://datasets/{repo}/\1'", card)
    card = re.sub(rf'InferenceSession\("{HERE}/([^"]*)"\)', rf'InferenceSession(hf_hub_download("{repo}", "\1"))', card)
    if "hf_hub_download(" in card:
        card = card.replace("import onnxruntime\n", "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n")
    return card.replace(HERE, repo)
