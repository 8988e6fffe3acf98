"""What the vLLM engine decides without vLLM; the engine itself is driven by tests/vllm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from paraclip_core.config import ParaphraseOptions, SamplingOptions, VllmOptions, meaning
from paraclip_core.errors import ConfigError, EngineError
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.engines.vllm import VllmEngine, gpu_groups, request_seed
from paraclip_core.paraphrase.engines.vllm_process import VllmProcess
from paraclip_core.paraphrase.protocol import Prompt


def prompt(text: str = "a dog", seed: int = 0) -> Prompt:
    return Prompt((("user", text),), text, 1, seed)


def test_the_model_id_holds_what_changes_answers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plain = VllmEngine(str(tmp_path), VllmOptions()).model
    assert plain.startswith(f"{tmp_path.name}@")
    faster = VllmOptions(python="x", max_num_seqs=3, gpu_memory_utilization=0.5, enforce_eager=True)
    assert VllmEngine(str(tmp_path), faster).model == plain
    other = VllmOptions(dtype="bfloat16", extra={"rope_theta": 5})
    assert VllmEngine(str(tmp_path), other).model.startswith(f"{plain}?dtype=bfloat16&extra=")
    assert VllmEngine("org/name", VllmOptions(revision="abc")).model == "org/name@abc"
    orders = [{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}]
    assert len({VllmEngine("org/name", VllmOptions(extra=extra)).model for extra in orders}) == 1
    for name in ("no-such-folder", "/no/such", "./a/b", "a/b/c", "x" * 300):
        with pytest.raises(EngineError, match="is no folder"):
            _ = VllmEngine(name, VllmOptions()).model


def test_operational_options_are_no_part_of_the_meaning() -> None:
    assert sorted(meaning(VllmOptions())) == ["dtype", "extra", "kv_cache_dtype", "quantization", "revision"]


@pytest.mark.parametrize("name", ["dtype", "max_num_seqs", "model", "seed"])
def test_an_option_has_one_place(name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is an option of its own, paraphrase"):
        VllmOptions(extra={name: 1})


@given(st.text(), st.text(), st.integers(0, 2**31), st.integers(0, 2**31))
def test_a_seed_follows_seed_and_text(one: str, other: str, seed: int, other_seed: int) -> None:
    assert 0 <= request_seed(prompt(one, seed)) < 2**48
    same = (one, seed) == (other, other_seed)
    assert (request_seed(prompt(one, seed)) == request_seed(prompt(other, other_seed))) == same


def test_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5, 6,GPU-7")
    assert gpu_groups(1, 0) == ["4", "5", "6", "GPU-7"]
    assert gpu_groups(2, 0) == ["4,5", "6,GPU-7"]
    assert gpu_groups(3, 0) == ["4,5,6"]
    assert gpu_groups(1, 2) == ["4", "5"]
    assert gpu_groups(1, 0, "cuda:1") == ["5"]
    assert gpu_groups(1, 0, "cpu") == [None]
    for tensors, engines, device in ((8, 0, "auto"), (2, 3, "auto"), (2, 0, "cuda:1"), (1, 0, "cuda:9")):
        with pytest.raises(ConfigError, match="GPU"):
            gpu_groups(tensors, engines, device)
    for none in ("", "-1", "NoDevFiles"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert gpu_groups(1, 0) == [None]
        assert gpu_groups(1, 2) == [None, None]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,5")
    assert gpu_groups(1, 0) == ["3"]


def options(**vllm: object) -> ParaphraseOptions:
    return ParaphraseOptions(engine="vllm", model="org/name", vllm=VllmOptions(**vllm))  # pyright: ignore[reportArgumentType]


def test_a_missing_vllm_says_how_to_install_it() -> None:
    engine = make_engine(options(python=sys.executable), device="cpu")
    assert engine.generate([], SamplingOptions()) == []
    # This environment cannot hold vLLM: its FastAPI is too old for Prefect.
    with pytest.raises(EngineError, match=r"needs vLLM.*pip install vllm.*paraphrase\.vllm\.python"):
        engine.generate([prompt()], SamplingOptions())
    engine.close()


def test_an_answer_cut_off_by_a_kill_is_a_failed_engine(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nread arguments\nprintf \'{"completions": [{"te\'\nkill -9 $$\n')
    python.chmod(0o755)
    process = VllmProcess(str(python), {})
    with pytest.raises(EngineError, match="killed by signal 9"):
        process.wait_until_ready()
    process.close()


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^paraphrase\.vllm\.python: /no/python cannot be run"):
        make_engine(options(python="/no/python"), device="cpu").generate([prompt()], SamplingOptions())
    with pytest.raises(ConfigError, match=r"needs paraphrase\.model"):
        make_engine(ParaphraseOptions(engine="vllm"))
