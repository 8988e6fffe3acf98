"""Every error that paraclip raises on purpose.

A message names what was found, what was expected and how to mend it.
"""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of operating-system errors that say that there is no room."""
FAILING = (errno.EIO, errno.ESTALE, errno.ENOTCONN)
"""Numbers of operating-system errors that say that a disk or a network folder is at fault, and nothing about a file."""


def with_notes(error: BaseException) -> str:
    """An error's text and, on lines of their own, the notes that were added on its way up."""
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


class ParaclipError(Exception):
    """Base of the tree. Its text is meant for a user, so the command line prints it without a traceback."""

    exit_code = 1


class ConfigError(ParaclipError):
    """An option is unknown, of the wrong type, out of range, or contradicts another."""

    exit_code = 2


class InputError(ParaclipError):
    """A source file, row or image cannot be read."""


class ArtifactError(ParaclipError):
    """An artifact is missing, edited, cut short or written by an incompatible version."""


class LockedError(ArtifactError):
    """Another living process holds the lock of this fingerprint."""


class FullDiskError(ArtifactError):
    """There is no space left for it."""


class UnknownNameError(ArtifactError):
    """No artifact, channel, generation, stage or root has this name, or several fit it."""

    exit_code = 2


class EngineError(ParaclipError):
    """The paraphrase engine cannot start, died, or answered something that is not a completion."""


class AwayError(EngineError):
    """The engine's server cannot be reached or answers no more, or its process was killed."""


class BudgetError(EngineError):
    """One answer more could cost more than the spending cap allows."""


class ModelError(ParaclipError):
    """A model cannot be loaded, or its image encoder is not the one that was expected."""


class UnknownModelError(ModelError):
    """There is no such folder, architecture or weights."""

    exit_code = 2


class TrainingError(ParaclipError):
    """Training diverged, or a checkpoint cannot be resumed."""


class BenchmarkError(ParaclipError):
    """A benchmark is missing or not in its published format."""


class StageError(ParaclipError):
    """A stage's process failed; the message carries the end of its log."""


class CrashedError(StageError):
    """A stage's process was killed or crashed."""


def worth_a_retry(error: object, attempt: int) -> bool:
    """Whether the same work may succeed if it is tried again after this attempt, counted from 1."""
    # A second try finds what was freed meanwhile; a third would only fill the disk once more.
    return isinstance(error, CrashedError | AwayError | LockedError) or (
        isinstance(error, FullDiskError) and attempt == 1
    )
