"""vLLM by itself. Run by the Python that vLLM is installed for, so it imports nothing of ours.

The first line of standard input has the arguments of `vllm.LLM` as JSON, each further line a list of (sampling,
conversations, seeds); the answer to it is the number of texts that were drawn.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from typing import Any


def main() -> None:
    """Answer until the input ends."""
    # vLLM prints to standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    vllm: Any = import_module("vllm")
    llm = vllm.LLM(**json.loads(sys.stdin.readline()))
    for line in sys.stdin:
        count = 0
        for sampling, conversations, seeds in json.loads(line):
            drawing = [vllm.SamplingParams(**sampling, seed=seed) for seed in seeds]
            count += sum(len(one.outputs) for one in llm.chat(conversations, drawing, use_tqdm=False))
        answers.write(f"{count}\n")
        answers.flush()


if __name__ == "__main__":
    main()
