"""Python interface: everything that the command line does to settings, models and indexes, without Prefect.

    import paraclip

    settings = paraclip.load_config("configs/demo.yaml", ["finetune.epochs=2"])
    print(paraclip.plan(settings))
    result = paraclip.run(settings)
    result.to_pandas()

Results render in a notebook (``_repr_html_``) and become data frames with ``to_pandas()``, which needs pandas.
`run`, `expand` and `evaluate` show their progress on standard error; ``progress=paraclip.silent`` keeps them quiet.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paraclip_core.config import Settings
from paraclip_core.progress import silent

if TYPE_CHECKING:
    from paraclip.models import audit, evaluate, export, load, search
    from paraclip.runs import expand, load_config, paraphrase, plan, run
    from paraclip.tables import Result, Table

__all__ = [
    "Result", "Settings", "Table", "audit", "evaluate", "expand", "export", "load", "load_config", "paraphrase",
    "plan", "run", "search", "silent",
]  # fmt: skip

HOMES = {
    "tables": ("Result", "Table"),
    "runs": ("expand", "load_config", "paraphrase", "plan", "run"),
    "models": ("audit", "evaluate", "export", "load", "search"),
}
"""What each module of this package offers here. It is imported when one of its names is first used: torch takes
seconds."""


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names:
            return getattr(import_module(f"paraclip.{module}"), name)
    raise AttributeError(f"module 'paraclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
