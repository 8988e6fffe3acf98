"""vLLM behind a pipe. Run by the Python that vLLM is installed for, so it imports nothing of paraclip.

Requests come as JSON lines on standard input: first the arguments of `vllm.LLM`, then lists of prompts; answers go out
as JSON lines on what was standard output. When the input ends, however its other end died, this process takes its
whole group with it: none of vLLM's own processes may keep a GPU.
"""

from __future__ import annotations

import difflib
import json
import os
import queue
import signal
import sys
import threading
from dataclasses import fields
from importlib import import_module
from typing import Any, TextIO

__all__: list[str] = []

PATIENCE_SECONDS = 10.0
SMALLEST_CPU_BATCH = 4096
Requests = queue.SimpleQueue[dict[str, Any]]


def _main() -> None:
    # vLLM prints to standard output; the answers must stay apart from that.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    requests: Requests = queue.SimpleQueue()
    orphaned = threading.Event()
    threading.Thread(target=_read, args=(requests, orphaned), daemon=True).start()
    engine: _Engine | None = None
    try:
        engine = _Engine(requests.get())
        _send(answers, engine.facts)
        while True:
            _send(answers, {"completions": engine.generate(**requests.get())})
    except Exception as error:
        _send(answers, {"error": f"{type(error).__name__}: {error}"})
        raise
    finally:
        if engine is not None:
            engine.shut_down()
        if orphaned.is_set():
            os.killpg(os.getpgid(0), signal.SIGKILL)


def _read(requests: Requests, orphaned: threading.Event) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    orphaned.set()
    # The main thread may be deep in a batch; what it holds should be given back in order, but not at any price.
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(PATIENCE_SECONDS)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


class _Engine:
    def __init__(self, arguments: dict[str, Any]) -> None:
        # Type checkers take `vllm` for the module beside this one.
        vllm: Any = import_module("vllm")
        _check_names(arguments, [field.name for field in fields(import_module("vllm.engine.arg_utils").EngineArgs)])
        if import_module("vllm.platforms").current_platform.is_cpu():
            _prefer_for_cpu(arguments)
        self._vllm = vllm
        self._llm: Any = vllm.LLM(**arguments)
        self._longest: int = self._llm.model_config.max_model_len
        self.facts = {"version": vllm.__version__, "max_model_len": self._longest}

    def generate(self, prompts: list[dict[str, Any]], sampling: dict[str, Any]) -> list[dict[str, Any]]:
        tokens = [self._tokens(prompt["messages"]) for prompt in prompts]
        longest = max(map(len, tokens)) + sampling["max_tokens"]
        if longest > self._longest:
            raise ValueError(
                f"a prompt and its answer may have {longest} tokens, paraphrase.vllm.max_model_len is {self._longest}"
            )
        outputs = self._llm.generate(
            [{"prompt_token_ids": ids} for ids in tokens],
            [self._vllm.SamplingParams(**sampling, seed=prompt["seed"]) for prompt in prompts],
            use_tqdm=False,
        )
        return [
            {
                "texts": [one.text for one in output.outputs],
                "prompt_tokens": len(ids),
                "completion_tokens": sum(len(one.token_ids) for one in output.outputs),
            }
            for ids, output in zip(tokens, outputs, strict=True)
        ]

    def _tokens(self, messages: list[tuple[str, str]]) -> list[int]:
        tokeniser = self._llm.get_tokenizer()
        if messages[0][0] == "text":
            return tokeniser.encode(messages[0][1])
        if not tokeniser.chat_template:
            return tokeniser.encode("\n".join(content for _, content in messages) + "\n")
        turns = [{"role": role, "content": content} for role, content in messages]
        text = tokeniser.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        # The template has put the special tokens there already.
        return tokeniser.encode(text, add_special_tokens=False)

    def shut_down(self) -> None:
        self._llm.llm_engine.engine_core.shutdown()


def _check_names(arguments: dict[str, Any], known: list[str]) -> None:
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"paraphrase.vllm: this release of vLLM has no engine argument {name!r}{hint}")


def _prefer_for_cpu(arguments: dict[str, Any]) -> None:
    # With one process nothing can outlive it; there is no GPU that a second one could keep busy meanwhile.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    # Binding threads to cores starves vLLM wherever something else runs on them.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # A seeded request whose prompt is cut kills vLLM's CPU engine: its generators have no offset to set back.
    arguments.setdefault("enable_chunked_prefill", False)
    if not arguments["enable_chunked_prefill"]:
        arguments.setdefault("max_num_batched_tokens", max(SMALLEST_CPU_BATCH, arguments["max_model_len"]))


if __name__ == "__main__":
    _main()
