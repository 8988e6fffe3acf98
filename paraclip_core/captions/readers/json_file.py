"""A JSON document that is loaded whole, as annotation files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from paraclip_core.captions.readers.lines import decode, open_bytes
from paraclip_core.errors import InputError

__all__ = ["load_json", "top_level_list"]


def load_json(path: Path) -> Any:
    """The document's value; bytes that are not UTF-8 become lone surrogates inside its texts.

    Raises:
        InputError: it cannot be read or is not JSON; the text says where.
    """
    with open_bytes(path) as file:
        raw = file.read()
    try:
        return json.loads(decode(raw.removeprefix(b"\xef\xbb\xbf")))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        hint = (
            "it is cut short, fetch it again" if error.pos >= len(error.doc.rstrip()) else "mend it or fetch it again"
        )
        raise InputError(f"{path} is not valid JSON ({error.msg} at {where}); {hint}") from error
    except RecursionError as error:
        raise InputError(f"{path} is nested too deeply to be an annotation file") from error
    except ValueError as error:
        # A number of thousands of digits.
        raise InputError(f"{path} is not valid JSON ({error}); mend it or fetch it again") from error


def top_level_list(document: Any, key: str, path: Path, form: str) -> list[Any]:
    """The list under `key` of the top-level object.

    Raises:
        InputError: there is no such list; the text says what is there instead.
    """
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, expected an object in {form} format")
    found = document.get(key)
    if not isinstance(found, list):
        keys = ", ".join(sorted(map(str, document)))[:200] or "none"
        raise InputError(f"{path} has no list {key!r}, so it is not in {form} format; its fields are {keys}")
    return found
