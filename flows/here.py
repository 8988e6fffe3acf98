"""No `Run` crosses a process: what a task's function needs of this process goes with it in a `Here`."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Here(Generic[T]):
    """A value that stays in this process; elsewhere it is None.

    Prefect pickles the task and the flow that are under way, with parameters and closures, for Ray's workers. Locks and
    progress bars cannot be pickled, and nothing there may use them.
    """

    def __init__(self, value: T) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Here, (None,)
