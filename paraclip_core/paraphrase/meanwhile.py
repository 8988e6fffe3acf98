"""Going on with one thing in a thread while another is done."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

__all__ = ["Meanwhile"]

Item = TypeVar("Item")


class Meanwhile(Generic[Item]):
    """A generator that a thread advances while a ``with`` block runs, and its user afterwards.

    The block's end waits for the item that is under way. Only one thread is ever inside the generator, and what it
    raises is raised where its next item would have come.
    """

    def __init__(self, items: Generator[Item, None, None]) -> None:
        """Nothing is advanced yet."""
        self._items = items
        self._found: list[Item] = []
        self._error: BaseException | None = None
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._advance, name="meanwhile", daemon=True)

    def __enter__(self) -> Meanwhile[Item]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        """All items; for after the block."""
        found, self._found = self._found, []
        yield from found
        if self._error is not None:
            raise self._error
        yield from self._items

    def close(self) -> None:
        """Give up the items that have not come yet; the one that is under way is waited for."""
        self._enough.set()
        if self._thread.is_alive():
            # An interrupt came while the block waited for it. A generator at work cannot be closed.
            self._thread.join()
        self._items.close()

    def _advance(self) -> None:
        try:
            while not self._enough.is_set():
                self._found.append(next(self._items))
        except StopIteration:
            pass
        except BaseException as error:
            self._error = error
