"""The tables that the Python interface returns: they render in a notebook and become data frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from paraclip_core.errors import ConfigError
from paraclip_core.text_safety import one_line


@dataclass(frozen=True)
class Table:
    """Rows with the same columns."""

    rows: Sequence[Mapping[str, Any]]
    title: str = ""

    def to_pandas(self) -> Any:
        """Convert the rows to a data frame.

        Raises:
            ConfigError: pandas is not installed.
        """
        try:
            # An optional package, which takes half a second.
            import pandas
        except ImportError as error:
            raise ConfigError(
                f"to_pandas() needs a package that is not installed: pip install pandas ({one_line(error)})"
            ) from error
        return pandas.DataFrame.from_records([dict(row) for row in self.rows])

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return "\n".join([self.title, *(str(dict(row)) for row in self.rows)]).strip()

    def _repr_html_(self) -> str:
        def shown(value: Any) -> str:
            return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)

        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
        cells = ("".join(f"<td>{escape(shown(row.get(name)))}</td>" for name in columns) for row in self.rows)
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<p>{escape(self.title)}</p><table><tr>{head}</tr>{body}</table>"


@dataclass(frozen=True)
class Result(Table):
    """A comparison, one row per metric; with more than two models, one per metric and model except the base."""

    summary: Mapping[str, Any] = field(default_factory=dict)
    """``summary.json``: models, deltas, intervals, verdict, reason."""
    report: Path | None = None
    """The report page; with more than two models, the folder with each comparison's page in a folder of its name."""

    @property
    def verdict(self) -> str | None:
        """promote or hold; None if nothing was compared, or several models were: see `comparisons` in `summary`."""
        return self.summary.get("verdict")
