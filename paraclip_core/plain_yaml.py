"""YAML as plain values, where a file or a word of the command line may hold anything."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

__all__ = ["load_yaml"]

MOST_VALUES = 100_000
"""Values that a text may stand for once its aliases are written out."""
MOST_BITS = 1024
"""Of a whole number, some 300 digits. Python reads thousands in hexadecimal, and then refuses to write them."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, except that an option given twice is an error instead of the last one winning silently.

    Numbers and texts that cannot be written down again are errors, too.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key != "<<" and key in seen:
                line = key_node.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"{key!r} is given twice, again in line {line}")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise yaml.MarkedYAMLError(problem="a whole number of more than 300 digits", problem_mark=node.start_mark)
        return value

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        value = super().construct_scalar(node)
        if isinstance(value, str) and _SURROGATE.search(value):
            raise yaml.MarkedYAMLError(problem="half a character (\\ud800 to \\udfff)", problem_mark=node.start_mark)
        return value


_UniqueKeyLoader.add_constructor("tag:yaml.org,2002:int", _UniqueKeyLoader.construct_yaml_int)


def load_yaml(text: str) -> Any:
    """The value that a text stands for.

    Raises:
        ValueError: it is no YAML, gives a key twice, is nested too deeply, has a number or a text that cannot be
            written down, or its aliases stand for more than `MOST_VALUES` values or for themselves.
    """
    try:
        tree = yaml.load(text, _UniqueKeyLoader)
        size = _size(tree, {})
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except (LookupError, TypeError, AttributeError) as error:  # what PyYAML does with !!bool x or !!map [a]
        raise ValueError(f"a value is not of the kind that the tag (!!…) before it says ({error})") from error
    if size > MOST_VALUES:
        raise ValueError(f"with its aliases (*name) written out it has more than {MOST_VALUES:,} values")
    return tree


def _size(value: Any, known: dict[int, float]) -> float:
    """Values in `value`, those behind an alias each time that it comes; infinite where one holds itself."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        inner = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_size(item, known) for item in inner)
    return known[id(value)]
