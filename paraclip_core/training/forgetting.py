"""Against forgetting, while training: terms that hold the tower near the base's.

``distil`` draws the embeddings of the captions, which the base knows, to where the base has them: weight · mean(1 -
cos). ``l2_sp`` draws the weights themselves back: weight / 2 · ‖θ - θ_base‖² (L2-SP, arXiv 1802.01483). The other way,
interpolation after training, is :mod:`paraclip_core.training.alpha`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from paraclip_core.clip.encode import Precision
from paraclip_core.clip.models import ClipModel
from paraclip_core.training.caching import CachedTexts
from paraclip_core.training.distributed import Processes
from paraclip_core.training.forward import Prepared

__all__ = ["DISTIL", "L2_SP", "Anchor"]

DISTIL, L2_SP = "distil", "l2_sp"
CAPTION = "caption"


class Anchor:
    """The base, as it was when training began."""

    def __init__(self, clip: ClipModel, distil: float, l2_sp: float) -> None:
        """Remember what the terms need of the model as it is; a weight of 0 is a term that is left out."""
        self.distil, self.l2_sp = distil, l2_sp
        trained = {name: p for name, p in clip.model.named_parameters() if p.requires_grad}
        self._weights = {name: p.detach().clone() for name, p in trained.items()} if l2_sp else {}
        self._tower: ClipModel | None = None
        if distil:
            # The image tower is the same one, and large.
            self._tower = replace(clip, model=copy.deepcopy(clip.model, {id(clip.visual): clip.visual}))
            self._tower.model.requires_grad_(False)
            self._tower.model.eval()

    def distance(
        self,
        prepared: Prepared,
        embeddings: Mapping[str, Tensor],
        precision: Precision,
        most_bytes: float,
        processes: Processes,
    ) -> Tensor:
        """Mean of 1 - cosine between the captions' embeddings and the base's, a scalar with history.

        `precision`, `most_bytes` and `processes` are as :class:`CachedTexts` takes them.
        """
        assert self._tower is not None
        captions = prepared.batch.texts[CAPTION]
        base = CachedTexts(
            self._tower, captions, precision=precision, keep=False, most_bytes=most_bytes, processes=processes
        )
        return (1 - (embeddings[CAPTION] * base.embed()).sum(1)).mean()

    @torch.no_grad()
    def pull_back(self, parameters: Mapping[str, nn.Parameter]) -> Tensor:
        """Add L2-SP's gradient to those of the parameters; its value without the weight, a scalar."""
        value = torch.zeros(())
        for name, base in self._weights.items():
            parameter = parameters[name]
            away = parameter - base
            value = value + away.square().sum().cpu() / 2
            parameter.grad = (
                self.l2_sp * away if parameter.grad is None else parameter.grad.add_(away, alpha=self.l2_sp)
            )
        return value
