"""Every error that paraclip raises on purpose.

ParaclipError
├── ConfigError          a wrong option, or options that contradict each other (exit code 2)
├── InputError           a source file, row or image that cannot be read
├── ArtifactError        an artifact that is missing, edited, cut short or of another version
│   └── LockedError      another process is writing the same fingerprint
├── EngineError          the paraphrase engine cannot start, died, or answered nonsense
├── ModelError           a model that cannot be loaded, or whose image tower changed
├── TrainingError        training that diverged, or a checkpoint that cannot be resumed
├── BenchmarkError       a benchmark that is not in its published format
└── StageError           a stage whose process failed; carries the end of its log

A message names what was found, what was expected and how to mend it.
"""

__all__ = [
    "ArtifactError",
    "BenchmarkError",
    "ConfigError",
    "EngineError",
    "InputError",
    "LockedError",
    "ModelError",
    "ParaclipError",
    "StageError",
    "TrainingError",
    "with_notes",
]


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


class EngineError(ParaclipError):
    """The paraphrase engine cannot start, died, or answered something that is not a completion."""


class ModelError(ParaclipError):
    """A model cannot be loaded, or its image tower is not the one that was expected."""


class TrainingError(ParaclipError):
    """Training diverged, or a checkpoint cannot be resumed."""


class BenchmarkError(ParaclipError):
    """A benchmark is missing or not in its published format."""


class StageError(ParaclipError):
    """A stage's process failed; the message carries the end of its log."""
