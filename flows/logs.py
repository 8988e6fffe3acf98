"""Where this project's own log lines go."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

OWN_LOGGERS = ("paraclip", "paraclip_core")


def let_own_logs_through() -> None:
    """Lower the threshold of loggers that have none of their own.

    Prefect sends the lines of PREFECT_LOGGING_EXTRA_LOGGERS to the UI, but leaves the threshold at warnings.
    """
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def outlive_worker() -> None:
    """Let a flow run's console lines go nowhere once the worker that reads them is gone.

    Prefect writes them with rich, which ends the process at the first line that no one reads. Call it where a flow's
    module is loaded: the run's first lines come before its body.
    """
    for handler in _handlers():
        console: Any = getattr(handler, "console", None)
        if hasattr(console, "on_broken_pipe"):
            console.on_broken_pipe = partial(_silence, console)


def _handlers() -> Iterator[logging.Handler]:
    for logger in (logging.getLogger(), *logging.Logger.manager.loggerDict.values()):
        yield from getattr(logger, "handlers", ())


def _silence(console: Any) -> None:
    console.quiet = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # What stays in the stream's buffer would fail once more when it is flushed at the end.
    os.dup2(nowhere, console.file.fileno())
    os.close(nowhere)


class _StandardError(logging.StreamHandler[Any]):
    """Writes to what is standard error at that moment: while bars are shown, lines go above them."""

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _: object) -> None:
        """Stay with standard error."""


def show_own_logs() -> None:
    """Send this project's own log lines, and no one else's, to standard error."""
    handler = _StandardError()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
