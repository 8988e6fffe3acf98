"""Conditions on the rows of a step, written in SQL by a user: which rows are to be asked for once more.

A condition is one boolean expression over the columns of a row, and depends on that row alone: rows are looked at batch
by batch, and a run that is repeated must ask for the same ones. DuckDB runs it in memory, without access to anything
outside.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from paraclip_core.config import RegenerateOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.gates import REASONS

__all__ = ["ROWS", "Condition", "conditions_of"]

ROWS = pa.schema(
    [
        pa.field("step", pa.int8()),
        pa.field("attempt", pa.int16()),  # the last one, 0 for the first
        pa.field("accepted", pa.bool_()),
        pa.field("reason", pa.string()),  # why the last answer was rejected, null where one was accepted
        pa.field("detail", pa.string()),
        pa.field("caption", pa.string()),
        pa.field("input", pa.string()),  # the caption at step 1, paraphrase 1 at step 2
        pa.field("answer", pa.string()),
        pa.field("similarity", pa.float32()),  # of caption and answer, null where nobody asked
        pa.field("image_id", pa.string()),
        pa.field("licence", pa.string()),
    ]
)
"""The columns that a condition may speak of."""

CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "enable_external_access": "false",
    "allow_community_extensions": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "python_enable_replacements": "false",
    "memory_limit": "512MB",
    "threads": "1",
    "lock_configuration": "true",
}
# The expression of a generated column may hold neither a subquery nor an aggregate, a window or another row's value.
CHECK = "CREATE TABLE checked ({columns}, chosen AS ({text}\n))"
INCONSTANT = r"""
SELECT DISTINCT function_name FROM duckdb_functions()
WHERE stability <> 'CONSISTENT' AND list_contains(regexp_extract_all(lower(?), '(\w+)"?\s*\(', 1), function_name)
"""
HELP = (
    f"expected one condition over the columns {', '.join(ROWS.names)} with comparisons, and, or, not, like, in, "
    "between, case and text or number functions, for example: step = 2 and similarity < 0.8"
)


class Condition:
    """A checked condition; `text` is its SQL."""

    def __init__(self, text: str) -> None:
        """Check the condition.

        Raises:
            ConfigError: it is not one boolean expression over the columns of `ROWS`.
        """
        self.text = text
        self._con = duckdb.connect(":memory:", config=CONFIG)
        self._con.register("rows", ROWS.empty_table())
        rows = self._con.table("rows")
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(rows.columns, rows.types, strict=True))
        query = CHECK.format(columns=columns, text=text)
        try:
            if len(duckdb.extract_statements(query)) != 1:
                raise self._wrong("it is more than one statement")
            self._con.execute(query)
            checked = self._con.table("checked")
            for (name,) in self._con.execute(INCONSTANT, [text]).fetchall():
                raise self._wrong(f"{name}() may be another value each time")
        except duckdb.Error as error:
            raise self._wrong(_first_line(error)) from error
        if len(checked.columns) != len(ROWS) + 1:
            raise self._wrong("it goes on after the condition")
        if str(checked.types[-1]) != "BOOLEAN":
            raise self._wrong(f"it is a {checked.types[-1]} and neither true nor false")

    def rows(self, table: pa.Table) -> list[int]:
        """Positions of the rows of `table` (`ROWS`) for which it is true, in order.

        Raises:
            ConfigError: a value cannot be converted as the condition wants.
        """
        self._con.register("rows", table.append_column("position", pa.array(range(table.num_rows), pa.int32())))
        try:
            positions = self._con.execute(f"SELECT position FROM rows WHERE ({self.text}\n)").fetchall()  # noqa: S608 (the user's own)
        except duckdb.Error as error:
            raise self._wrong(_first_line(error)) from error
        return sorted(position for (position,) in positions)

    def _wrong(self, why: str) -> ConfigError:
        shown = self.text if len(self.text) <= 200 else f"{self.text[:200]}…"
        return ConfigError(f"paraphrase.regenerate: the condition {shown!r} cannot be used: {why}; {HELP}")


def conditions_of(entries: Sequence[RegenerateOptions]) -> tuple[Condition, ...]:
    """The condition behind each entry.

    Raises:
        ConfigError: there is no such reason, or a condition cannot be used.
    """
    return tuple(Condition(_sql(entry)) for entry in entries)


def _sql(entry: RegenerateOptions) -> str:
    if entry.where:
        return entry.where
    if entry.reason not in REASONS:
        raise ConfigError(
            f"paraphrase.regenerate: {entry.reason!r} is no reason for a rejection; there are {', '.join(REASONS)}"
        )
    return f"reason = '{entry.reason}'"


def _first_line(error: duckdb.Error) -> str:
    return str(error).splitlines()[0]
