"""An exported folder on the Hugging Face hub, in one commit.

The token is that of huggingface_hub's own login (`hf auth login`, or HF_TOKEN) and the place is its HF_ENDPOINT. Both
stay with that library: nothing here reads, writes or says the token.
"""

from __future__ import annotations

import re
from pathlib import Path

from paraclip_core.errors import ConfigError, ParaclipError, one_line

CARD = "README.md"
HERE = "PATH_OF_THIS_FOLDER"
"""What an exported card says in place of where it lies."""
LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"


def _check(repo: str) -> None:
    """See that `repo` can be a name and that there is a login."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ConfigError(f"{repo!r} is no name on the hub: {one_line(error)}; expected ORG/NAME") from error
    if "/" not in repo:
        raise ConfigError(f"{repo!r} names no organization or user; expected ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be pushed; unset it")
    if get_token() is None:
        raise ConfigError(f"nothing can be pushed to {repo} without a login; {LOGIN}")


def push_folder(folder: Path, repo: str, private: bool = False) -> str:
    """Push what `export` or `export-dataset` wrote (Parquet in `data` makes it a data set); gives the address.

    The repository is made if need be, as a `private` one if so asked.
    """
    from httpx import HTTPError
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    kind = _kind(folder)
    _check(repo)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CARD)
    card = published_card((folder / CARD).read_text("utf-8"), repo)
    operations = [CommitOperationAdd(CARD, card.encode())]
    operations += [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
    api = HfApi(library_name="paraclip")
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        api.create_commit(repo, operations, repo_type=kind, commit_message=f"{kind.capitalize()} exported by paraclip")
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise ConfigError(f"the hub refuses to write to {repo}: {one_line(error)}; {LOGIN}") from error
        raise ParaclipError(f"the hub did not take {folder} as {repo}: {one_line(error)}") from error
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        # It wraps what goes wrong in an upload in several ways.
        raise ParaclipError(f"{folder} could not be pushed to {repo}: {one_line(error)}; try again") from error
    return str(url)


def _kind(folder: Path) -> str:
    if not (folder / CARD).is_file():
        raise ConfigError(
            f"{folder} holds no {CARD}; expected a folder that `paraclip export` or `paraclip export-dataset` wrote"
        )
    return "dataset" if any(folder.glob("data/*.parquet")) else "model"


def published_card(card: str, repo: str) -> str:
    """A card whose examples load from the hub instead of from a folder."""
    card = card.replace(f"local-dir:{HERE}", f"hf-hub:{repo}")
    card = re.sub(rf"'{HERE}/(data/[^']*)'", rf"'hf://datasets/{repo}/\1'", card)
    card = re.sub(rf'InferenceSession\("{HERE}/([^"]*)"\)', rf'InferenceSession(hf_hub_download("{repo}", "\1"))', card)
    if "hf_hub_download(" in card:
        card = card.replace("import onnxruntime\n", "import onnxruntime\nfrom huggingface_hub import hf_hub_download\n")
    return card.replace(HERE, repo)
