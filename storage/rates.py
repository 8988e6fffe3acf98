"""Measured rates of engines: ``cache/rates.json``, by engine, model, what was asked and host.

``cache/trials.json`` has the outcome of trying the same engines with other options, whatever they were asked.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.atomic import read_json, write_json
from storage.locks import lock

__all__ = ["known_rate", "known_trials", "remember_rate", "remember_trial"]

RATES, TRIALS = "rates.json", "trials.json"


def remember_rate(cache_folder: Path, engine: str, model: str, asked: str, rate: dict[str, Any]) -> None:
    """Keep what was measured here for an engine; it takes the place of what was measured before.

    Args:
        cache_folder: the root's cache.
        engine: its name in the configuration.
        model: model id and revision.
        asked: names the prompts and the sampling: another length of answers is another rate.
        rate: what was measured.

    Raises:
        ArtifactError: the file cannot be written, or is no JSON.
    """
    _change(cache_folder / RATES, lambda known: known | {_key(engine, model, asked): rate})


def known_rate(cache_folder: Path, engine: str, model: str, asked: str) -> dict[str, Any] | None:
    """What was measured on this host, if anything was.

    Raises:
        ArtifactError: the file is no JSON.
    """
    found = _known(cache_folder / RATES).get(_key(engine, model, asked))
    return found if isinstance(found, dict) else None


def remember_trial(cache_folder: Path, engine: str, model: str, trial: str, outcome: dict[str, Any]) -> None:
    """Keep what became of an engine with the options that `trial` names.

    Raises:
        ArtifactError: the file cannot be written, or is no JSON.
    """
    key = _key(engine, model)
    _change(cache_folder / TRIALS, lambda known: known | {key: known.get(key, {}) | {trial: outcome}})


def known_trials(cache_folder: Path, engine: str, model: str) -> dict[str, dict[str, Any]]:
    """What became of an engine's trials on this host, by their names.

    Raises:
        ArtifactError: the file is no JSON.
    """
    return _known(cache_folder / TRIALS).get(_key(engine, model), {})


def _change(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    with lock(path.with_suffix(".lock")):
        write_json(path, change(_known(path)))


def _known(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    # Rates can be measured again: what another version wrote in another form is in nobody's way.
    return found if isinstance(found, dict) else {}


def _key(*parts: str) -> str:
    return "|".join((*parts, platform.node()))
