"""Conditions on the rows of a step, written in SQL by a user: which rows are to be asked for once more.

A condition is one boolean expression. It is parsed before it is used, and only what is known to look at nothing but
the row itself is let through, so its result depends on the row alone: no other table, file or setting, no clock, no
chance, no other row. DuckDB runs it in memory, without access to anything outside.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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

FUNCTIONS = {
    "+", "-", "*", "/", "//", "%", "||", "~~", "~~*", "!~~", "!~~*", "like_escape", "ilike_escape",
    "not_like_escape", "not_ilike_escape", "abs", "ceil", "ceiling", "char_length", "concat", "contains",
    "ends_with", "floor", "greatest", "instr", "jaccard", "jaro_winkler_similarity", "least", "left", "len",
    "length", "levenshtein", "lower", "ltrim", "position", "prefix", "regexp_full_match", "regexp_matches",
    "reverse", "right", "round", "rtrim", "starts_with", "string_split", "strlen", "strpos", "substr",
    "substring", "suffix", "trim", "upper",
}  # fmt: skip
CLASSES = {
    "BETWEEN", "CASE", "CAST", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION", "OPERATOR", "TYPE",
}  # fmt: skip
TYPES = {
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "FLOAT", "DOUBLE", "VARCHAR", "TEXT",
}  # fmt: skip
LONGEST = 2000
MOST_JOINS = 8
"""Texts that a condition may put together: each is held for thousands of rows at once."""
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
        if len(text) > LONGEST:
            raise self._wrong(f"it has {len(text)} characters, at most {LONGEST} are read")
        if not text.strip():
            raise self._wrong("it is empty")
        self._con = duckdb.connect(":memory:", config=CONFIG)
        self._check(self._parsed(text))
        self._con.register("rows", ROWS.empty_table())
        try:
            kind = str(self._con.sql(f"SELECT ({text}\n) FROM rows").types[0])  # noqa: S608 (checked above)
        except duckdb.Error as error:
            raise self._wrong(_first_line(error)) from error
        if kind != "BOOLEAN":
            raise self._wrong(f"it is a {kind} and neither true nor false")

    def rows(self, table: pa.Table) -> list[int]:
        """Positions of the rows of `table` (`ROWS`) for which it is true, in order.

        Raises:
            ConfigError: a value cannot be converted as the condition wants.
        """
        self._con.register("rows", table.append_column("position", pa.array(range(table.num_rows), pa.int32())))
        try:
            found = self._con.execute(f"SELECT position FROM rows WHERE ({self.text}\n)").fetchall()  # noqa: S608 (checked)
        except duckdb.Error as error:
            raise self._wrong(_first_line(error)) from error
        return sorted(position for (position,) in found)

    def _parsed(self, text: str) -> Mapping[str, Any]:
        """DuckDB's tree of the only statement that the condition may be a part of."""
        query = f"SELECT * FROM rows WHERE ({text}\n)"  # noqa: S608 (only parsed)
        try:
            (found,) = self._con.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()[0]
        except duckdb.Error as error:
            raise self._wrong(_first_line(error)) from error
        tree = json.loads(found)
        if tree.get("error"):
            raise self._wrong(str(tree.get("error_message")))
        if len(tree["statements"]) != 1:
            raise self._wrong("it is more than one statement")
        return tree["statements"][0]["node"]

    def _check(self, node: Mapping[str, Any]) -> None:
        plain = self._parsed("TRUE")
        outside = {key for key in node.keys() | plain.keys() if node.get(key) != plain.get(key)} - {"where_clause"}
        if outside or node.get("where_clause") is None:
            raise self._wrong("it goes on after the condition, or holds more than one")
        for problem in _problems(node["where_clause"]):
            raise self._wrong(problem)
        if (joins := _joins(node["where_clause"])) > MOST_JOINS:
            raise self._wrong(f"it joins texts {joins} times, at most {MOST_JOINS}")

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


def _problems(tree: Any) -> Iterator[str]:
    """What in an expression could look at more than its row."""
    if isinstance(tree, list):
        for below in tree:
            yield from _problems(below)
    if not isinstance(tree, dict):
        return
    kind = tree.get("class")
    if kind is not None and kind not in CLASSES:
        yield f"a {kind.lower().replace('_', ' ')} may not be in it"
    elif kind == "COLUMN_REF" and not (
        len(tree["column_names"]) == 1 and tree["column_names"][0].lower() in ROWS.names
    ):
        yield f"there is no column {'.'.join(tree['column_names'])!r}"
    elif kind == "TYPE" and tree["type_name"].upper() not in TYPES:
        yield f"values cannot be turned into {tree['type_name']}"
    elif kind == "FUNCTION" and (problem := _function_problem(tree)):
        yield problem
    for below in tree.values():
        yield from _problems(below)


def _joins(tree: Any) -> int:
    if isinstance(tree, list):
        return sum(map(_joins, tree))
    if not isinstance(tree, dict):
        return 0
    own = len(tree["arguments"]) - 1 if tree.get("function_name") in ("||", "concat") else 0
    return own + sum(map(_joins, tree.values()))


def _function_problem(tree: Mapping[str, Any]) -> str | None:
    name = str(tree["function_name"])
    if name not in FUNCTIONS or tree["schema"] or tree["catalog"]:
        return f"the function {name!r} may not be in it"
    if tree["filter"] is not None or tree["distinct"] or tree["order_bys"]["orders"]:
        return f"{name!r} may not be used as an aggregate"
    return None


def _first_line(error: duckdb.Error) -> str:
    return str(error).splitlines()[0]
