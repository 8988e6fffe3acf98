"""Where this project's own log lines go."""

from __future__ import annotations

import logging
import sys

__all__ = ["OWN_LOGGERS", "let_own_logs_through", "show_own_logs"]

OWN_LOGGERS = ("flows", "tasks", "paraclip_core", "storage")


def let_own_logs_through() -> None:
    """Lower the threshold of loggers that have none of their own.

    Prefect sends the lines of PREFECT_LOGGING_EXTRA_LOGGERS to the UI, but leaves the threshold at warnings.
    """
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.INFO)


def show_own_logs() -> None:
    """Send this project's own log lines, and no one else's, to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in OWN_LOGGERS:
        logger = logging.getLogger(name)
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        logger.propagate = False
