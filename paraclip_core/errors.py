"""Every error that paraclip raises on purpose.

A message says what was found, what was expected and how to fix it.
"""

from __future__ import annotations

from collections.abc import Sequence


def with_notes(error: BaseException) -> str:
    """An error's text and, each on its own line, the notes added on its way up."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


class ParaclipError(Exception):
    """Base class. Its text is meant for users, so the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(ParaclipError):
    """An option is unknown, of the wrong type, out of range, or contradicts another."""

    exit_code = 2


class InputError(ParaclipError):
    """A source file, row or image cannot be read."""


class UnknownQueriesError(InputError):
    """A heads file does not hold these queries."""

    def __init__(self, message: str, queries: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.queries = queries


class ArtifactError(ParaclipError):
    """An artifact is missing, edited, truncated or written by an incompatible version."""


class LockedError(ArtifactError):
    """Another running process holds the lock of this fingerprint."""


class UnknownNameError(ArtifactError):
    """No artifact, channel, generation, stage or root has this name, or several match it."""

    exit_code = 2


class EngineError(ParaclipError):
    """The paraphrase engine cannot start, died, or returned something that is not a completion."""


class AwayError(EngineError):
    """The engine's server cannot be reached or no longer answers, or its process was killed."""


class FailedError(AwayError):
    """The engine's server fails on a request, and does so again; the prompt may be the reason."""


class RefusedError(EngineError):
    """The engine's server refuses a request."""


class BudgetError(EngineError):
    """One more answer could exceed the spending cap."""


class ModelError(ParaclipError):
    """A model cannot be loaded, or its image encoder is not the expected one."""


class UnknownModelError(ModelError):
    """The folder, architecture or weights do not exist."""

    exit_code = 2


class TrainingError(ParaclipError):
    """Training diverged, or a checkpoint cannot be resumed."""


class BenchmarkError(ParaclipError):
    """A benchmark is missing or not in its published format."""


class StageError(ParaclipError):
    """A stage's process failed; the message carries the end of its log."""


class CrashedError(StageError):
    """A stage's process was killed or crashed, or the operating system refused it something, such as room on a disk."""


def worth_a_retry(error: object) -> bool:
    """Whether the same work may succeed if it is tried again."""
    return isinstance(error, CrashedError | AwayError | LockedError)
