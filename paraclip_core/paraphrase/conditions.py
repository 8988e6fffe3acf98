"""Conditions on the rows of a step, written in SQL by a user: which rows are to be asked for once more.

A condition is one boolean expression over the columns of a row, and depends on that row alone: rows are looked at batch
by batch, and a run that is repeated must ask for the same ones.
"""

from __future__ import annotations

import duckdb
import pyarrow as pa

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import ConfigError
from paraclip_core.paraphrase.gates import REASONS, gates_of

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
    "python_enable_replacements": "false",
    "threads": "1",
    "lock_configuration": "true",
}
# The expression of a generated column may hold no subquery, aggregate or window, which would look at other rows.
CHECK = "CREATE TABLE checked ({columns}, chosen AS ({text}\n))"
# Clock and chance: the next run would ask for other rows.
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
        rows = self._con.from_arrow(ROWS.empty_table())
        columns = ", ".join(f"{name} {kind}" for name, kind in zip(rows.columns, rows.types, strict=True))
        try:
            self._con.execute(CHECK.format(columns=columns, text=text))
            kind = self._con.table("checked").types[-1]
            inconstant = self._con.execute(INCONSTANT, [text]).fetchall()
        except duckdb.Error as error:
            raise self._unusable(str(error).splitlines()[0]) from error
        if inconstant:
            raise self._unusable(f"{inconstant[0][0]}() may be another value each time")
        if str(kind) != "BOOLEAN":
            raise self._unusable(f"it is a {kind} and neither true nor false")

    def rows(self, table: pa.Table) -> list[int]:
        """Positions of the rows of `table` (`ROWS`) for which it is true, in order.

        Raises:
            ConfigError: a value cannot be converted as the condition wants.
        """
        rows = self._con.from_arrow(table.append_column("position", pa.array(range(table.num_rows), pa.int32())))
        try:
            return sorted(position for (position,) in rows.filter(f"({self.text}\n)").select("position").fetchall())
        except duckdb.Error as error:
            raise self._unusable(str(error).splitlines()[0]) from error

    def _unusable(self, why: str) -> ConfigError:
        shown = self.text if len(self.text) <= 200 else f"{self.text[:200]}…"
        return ConfigError(f"paraphrase.regenerate: the condition {shown!r} cannot be used: {why}; {HELP}")


def conditions_of(options: ParaphraseOptions) -> tuple[Condition, ...]:
    """The condition behind each entry of `regenerate`.

    Raises:
        ConfigError: no gate has such a reason, or a condition cannot be used.
    """
    gates = gates_of(options.gates)
    reasons = dict.fromkeys((*REASONS, *gates.text, *gates.meaning))
    for entry in options.regenerate:
        if entry.reason and entry.reason not in reasons:
            raise ConfigError(
                f"paraphrase.regenerate: {entry.reason!r} is no reason for a rejection; there are {', '.join(reasons)}"
            )
    return tuple(Condition(entry.where or f"reason = '{entry.reason}'") for entry in options.regenerate)
