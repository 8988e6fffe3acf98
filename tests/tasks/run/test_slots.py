"""Which GPUs a process sees, and which slots a stage takes."""

from __future__ import annotations

from typing import Any

import pytest

from paraclip.tasks.run.execute import STAGES
from paraclip.tasks.run.run import Run
from paraclip.tasks.run.slots import Slots, visible_gpus
from paraclip_core.settings import load_settings

SERVER = "paraphrase.engine=openai", "paraphrase.model=m", "paraphrase.openai.base_url=http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("visible", "names"),
    [("4,5, 6,GPU-7", ["4", "5", "6", "GPU-7"]), ("3,-1,5", ["3"]), ("", []), ("-1", []), ("NoDevFiles", [])],
)
def test_the_gpus_that_a_process_sees(visible: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == names


@pytest.mark.parametrize(
    ("gpus", "options", "slots"),
    [
        (0, [], {"paraphrase_1": ("cpu",), "features": None, "finetune": None}),
        (0, SERVER, {"paraphrase_1": (), "features": ("cpu",)}),
        (1, [], {"paraphrase_1": ("cpu",), "features": ("cuda:0",), "built_in_base": None, "ingest": None}),
        (2, ["paraphrase.engine=vllm"], {"paraphrase_1": ("cuda:0", "cuda:1"), "features": None, "ingest": ("cpu",)}),
        (2, ["paraphrase.engine=transformers"], {"paraphrase_1": ("cuda:0",), "features": ("cuda:1",)}),
        (2, [], {"features": ("cuda:0",), "finetune": ("cuda:1",), "evaluate": None}),
        (2, ["run.device=cpu"], {"features": ("cpu",), "ingest": None}),
        (2, ["run.device=cuda"], {"features": ("cuda:0",), "evaluate": None}),
        (2, ["run.device=cuda:1"], {"features": ("cuda:1",), "evaluate": None}),
    ],
)
def test_slots(gpus: int, options: Any, slots: dict[str, tuple[str, ...] | None]) -> None:
    if "paraphrase.engine" in "".join(options) and "openai" not in "".join(options):
        options = [*options, "paraphrase.model=m"]
    run = Run(load_settings(None, ["data.sources.0.path=captions.jsonl", *options]))
    machine = Slots(gpus)
    taken = {name: machine.take(STAGES[name], run) for name in slots}
    assert taken == slots
    for names in taken.values():
        machine.release(names or ())
    assert all(machine.take(STAGES[name], run) is not None for name in list(slots)[:1])
