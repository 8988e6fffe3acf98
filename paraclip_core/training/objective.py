"""The loss of a step and its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from paraclip_core.clip.encode import Precision, computed_tokens
from paraclip_core.clip.models import ClipModel
from paraclip_core.training.caching import CachedTexts, activation_bytes, touched_vocabulary
from paraclip_core.training.distributed import ALONE, Processes
from paraclip_core.training.forgetting import DISTIL, L2_SP, Anchor
from paraclip_core.training.forward import Prepared
from paraclip_core.training.losses import Pair, contrastive_loss
from paraclip_core.training.memory import GIB, anonymous_memory
from paraclip_core.training.optimiser import trained_parameters

__all__ = ["Objective"]


@dataclass(frozen=True)
class Objective:
    """What is to become small."""

    clip: ClipModel
    pairs: Sequence[Pair]
    precision: Precision = "fp32"
    memory_gib: float = 4.0
    """Memory for what the backward pass needs of a batch. Larger batches are embedded twice instead."""
    anchor: Anchor | None = None
    processes: Processes = ALONE
    taken: int = field(default_factory=anonymous_memory)
    """Bytes that this process has before the first batch."""

    def gradients(self, prepared: Prepared, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Add the gradients of a batch's loss to the parameters' ``grad``.

        Args:
            prepared: the batch.
            seed: of the dropout, where the tower has any.

        Returns:
            The loss, and each term without its weight, by name; scalars without history, the same in every process.
        """
        clip, anchor = self.clip, self.anchor
        scale, parameters = clip.model.get_parameter("logit_scale"), trained_parameters(clip.model)
        # The scale's gradient comes from the whole batch.
        of_texts = [parameter for parameter in parameters.values() if parameter is not scale]
        most_bytes = self.taken + self.memory_gib * GIB
        with touched_vocabulary(clip, prepared.tokens) as vocabulary:
            texts = CachedTexts(
                clip,
                prepared.tokens,
                precision=self.precision,
                keep=self.fits(prepared),
                most_bytes=most_bytes,
                seed=seed,
                processes=self.processes,
            )
            found = texts.embed().requires_grad_()
            embeddings = prepared.embeddings(found)
            loss, terms = contrastive_loss(embeddings, scale, self.pairs, prepared.key_tensors(clip.device))
            if anchor is not None and anchor.distil:
                distance = anchor.distance(prepared, embeddings, self.precision, most_bytes, self.processes)
                loss, terms = loss + anchor.distil * distance, terms | {DISTIL: distance.detach()}
            loss.backward()
            assert found.grad is not None
            texts.send_back(found.grad, [*vocabulary, *of_texts])
        self.processes.sum_gradients(of_texts)
        loss = loss.detach()
        if anchor is not None and anchor.l2_sp:
            distance = anchor.pull_back(parameters).to(loss.device)
            loss, terms = loss + anchor.l2_sp * distance, terms | {L2_SP: distance}
        return loss, terms

    def fits(self, prepared: Prepared) -> bool:
        """Whether this process's share of the batch can be kept for the backward pass."""
        tokens = computed_tokens(self.clip, prepared.tokens) / self.processes.count
        return tokens * activation_bytes(self.clip, self.precision) <= self.memory_gib * GIB
