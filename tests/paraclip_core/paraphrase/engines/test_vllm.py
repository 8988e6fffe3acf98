"""What the vLLM engine decides without vLLM; the engine itself is driven by tests/vllm."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from paraclip_core.config import ParaphraseOptions
from paraclip_core.errors import AwayError, ConfigError, EngineError
from paraclip_core.paraphrase.engines import EngineContext, EngineOptions, Prompt, SamplingOptions
from paraclip_core.paraphrase.engines.vllm import VllmEngine, VllmOptions, _gpu
from paraclip_core.paraphrase.paraphraser import make_engine
from tests.kit.waiting import eventually


def engine_of(model: str = "org/name", chunk: int = 8, **own: Any) -> VllmEngine:
    return VllmEngine(EngineOptions(VllmOptions(**own), model, chunk), EngineContext(device="cpu"))


def prompt(text: str = "a dog", seed: int = 0) -> Prompt:
    return Prompt((("user", text),), text, 1, seed)


def test_the_model_id_holds_what_changes_answers_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    plain = engine_of(str(tmp_path)).model
    assert plain.startswith(f"{tmp_path.name}@")
    faster = {"max_num_seqs": 3, "gpu_memory_utilization": 0.5, "enforce_eager": True}
    assert engine_of(str(tmp_path), python="x", extra=faster).model == plain
    other = engine_of(str(tmp_path), extra={"dtype": "bfloat16"})
    assert other.model.startswith(f"{plain}?extra=")
    assert [engine_of(extra=e).model for e in ({}, {"revision": "abc"})] == ["org/name@main", "org/name@abc"]
    orders = [{"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}]
    assert len({engine_of(extra=extra).model for extra in orders}) == 1
    for name in ("no-such-folder", "/no/such", "./a/b", "a/b/c", "x" * 300):
        with pytest.raises(EngineError, match="is not a folder"):
            _ = engine_of(name).model


def test_an_option_has_one_place() -> None:
    for name in ("model", "seed"):
        with pytest.raises(ValidationError, match=f"{name} is an option of its own, paraphrase"):
            VllmOptions(extra={name: 1})


STAND_IN = """
import os, signal, sys, threading
from tests.kit.openai_server import OpenAIServer, reply, status, words_of

assert sys.argv[sys.argv.index("--model") + 1] and "--no-enable-chunked-prefill" in sys.argv, sys.argv


def answer(asked):
    text = words_of(asked)
    if "die now" in text:
        print("I was told to", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if "too long" in text:
        return status(400, "This model's maximum context length is 512 tokens.")
    return reply(*[f"{text} by {os.getpid()}"] * asked.get("n", 1))


server = OpenAIServer(port=int(sys.argv[sys.argv.index("--port") + 1]))
server.answer = answer
threading.Event().wait()
"""
REPOSITORY = Path(__file__).parents[4]


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """An interpreter in whose environment a small server stands in for vLLM's build for CPUs."""
    package = tmp_path / "site" / "vllm"
    (package / "entrypoints" / "openai").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "platforms.py").write_text("class current_platform:\n    is_cpu = staticmethod(lambda: True)\n")
    (package / "entrypoints" / "openai" / "api_server.py").write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path / "site"}:{REPOSITORY}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_missing_vllm_says_how_to_install_it() -> None:
    engine = engine_of(python=sys.executable)
    assert engine.generate([], SamplingOptions()) == []
    # This environment cannot hold vLLM: its FastAPI is too old for Prefect.
    with pytest.raises(EngineError, match=r"needs vLLM.*pip install vllm.*paraphrase\.vllm\.python"):
        engine.generate([prompt()], SamplingOptions())
    engine.close()


def test_a_process_that_dies_while_it_loads_is_a_failed_engine(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho loading the weights\nkill -9 $$\n")
    python.chmod(0o755)
    engine = engine_of(python=str(python))
    with pytest.raises(EngineError, match=r"did not start: .* killed by signal 9.*out of memory(.|\n)*loading the wei"):
        engine.generate([prompt()], SamplingOptions())


def test_the_server_answers_and_ends_with_the_engine(stand_in: str) -> None:
    engine = engine_of(python=stand_in, extra={"a_b": 4})
    engine.check()
    texts = [f"photo {number}" for number in range(40)]
    completions = engine.generate([prompt(text) for text in texts], SamplingOptions(n=2))
    assert [completion.texts[0].rpartition(" by ")[0] for completion in completions] == texts
    (pid,) = {int(completion.texts[0].rpartition(" ")[2]) for completion in completions}
    assert alive(pid)
    engine.close()
    assert not alive(pid)
    # It may be used again.
    assert len(engine.generate([prompt()], SamplingOptions())) == 1
    engine.close()


def test_when_the_server_dies_its_log_is_shown_and_answers_were_handed_over(stand_in: str) -> None:
    engine = engine_of(chunk=4, python=stand_in)
    prompts = [prompt(f"photo {number}") for number in range(20)] + [prompt("die now")] + [prompt("z")] * 20
    numbers: set[int] = set()
    with pytest.raises(AwayError, match=r"failed on 41 prompts: .* killed by signal 9(.|\n)*I was told to"):
        numbers.update(item[0] for item in engine.stream(prompts, SamplingOptions()) if item)
    assert set(range(16)) <= numbers and 20 not in numbers
    assert len(engine.generate(prompts[:3], SamplingOptions())) == 3
    engine.close()


def test_a_prompt_that_does_not_fit_stops_the_run(stand_in: str) -> None:
    engine = engine_of(python=stand_in, extra={"max_model_len": 512})
    with pytest.raises(EngineError, match=r"maximum context length.*; max_model_len in paraphrase\.vllm\.extra is 512"):
        engine.generate([prompt(), prompt("too long")], SamplingOptions())
    engine.close()


def test_no_server_outlives_a_process_that_is_killed(stand_in: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from paraclip_core.paraphrase.engines.vllm import VllmProcess\n"
        "process = VllmProcess(sys.argv[1], ['m', '--max-model-len', '64'])\n"
        "process.wait_until_ready()\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, stand_in], stdout=subprocess.PIPE, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL
    eventually(lambda: not alive(int(killed.stdout)), seconds=60)


def test_wrong_options_are_named_and_a_gpu_is_of_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^paraphrase\.vllm\.python: /no/python cannot be run"):
        engine_of(python="/no/python").generate([prompt()], SamplingOptions())
    with pytest.raises(ConfigError, match=r"needs paraphrase\.model"):
        make_engine(ParaphraseOptions(engine="vllm"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (_gpu("auto"), _gpu("cpu"), _gpu("cuda:1")) == (None, None, "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5")
    assert _gpu("cuda:1") == "5"
    with pytest.raises(ConfigError, match=r"run\.device=cuda:2"):
        _gpu("cuda:2")
