"""The options of both trainings, `built_in_base` and `finetune`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from paraclip_core.options import OPERATIONAL, Options


class BuiltInBaseOptions(Options):
    """Training of the built-in base with the caption-image loss alone (LiT)."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """Passes over the training captions."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Captions in a batch."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak learning rate."""
    logit_scale: Annotated[float, Field(ge=1, le=100)] = 14.3
    """Factor of the cosines at the start (CLIP's 1/0.07), learned from there. Locked features that lie close together
    want more: 50 with `model.embed_dim: 1280`, which keeps all that the image encoder says."""


class LossWeights(Options):
    """Weights of the contrastive losses, InfoNCE or, against images and for a base with a logit bias, the pairwise
    sigmoid; the published method is the sum of the three named ones."""

    image_paraphrase_2: Annotated[float, Field(ge=0)] = 1.0
    """Weight of image against paraphrase 2."""
    caption_paraphrase_1: Annotated[float, Field(ge=0)] = 1.0
    """Weight of caption against paraphrase 1."""
    paraphrase_1_paraphrase_2: Annotated[float, Field(ge=0)] = 1.0
    """Weight of paraphrase 1 against paraphrase 2."""
    image_caption: Annotated[float, Field(ge=0)] = 0.0
    """Weight of image against caption; not in the published method, it anchors the encoder to what it knew."""

    @model_validator(mode="after")
    def _some_loss(self) -> LossWeights:
        if not any(self.model_dump().values()):
            raise ValueError("at least one loss weight must be above 0")
        return self


class RankingDistillation(Options):
    """Ranking distillation: caption and both paraphrases rank a batch's images as the base does."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean KL divergence from the base's ranking; 0: none."""
    teacher: Literal["caption", "mean"] = "caption"
    """Whose ranking the base gives: the caption's, or that of the mean of its features of caption and paraphrases, the
    better teacher where a language model wrote them. The base embeds three texts a row for it."""


class AlphaOptions(Options):
    """Interpolation of the tuned text encoder with the base's (WiSE), chosen on validation."""

    grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of α to try: 1 is the tuned encoder as trained, 0 the base, which is tried whether it is listed or not."""
    max_recall_drop: Annotated[float, Field(ge=0)] = 0.5
    """Points of validation text→image recall@10 that may be lost; among the rest the best AO@10 wins. Both look at half
    of the held-out images in place of ten where there are fewer than twenty."""
    recall_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Points of AO@10 that a point of recall@10 is worth in this choice: at 1 the best sum of both wins."""


class FinetuneOptions(Options):
    """Training of the text encoder on captions, both paraphrases and image features."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Rows in a batch, and so candidates of each contrastive loss."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """AdamW's decay of matrices (gains, biases and the logit scale have none)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the text encoder, also while the built-in base is trained; the loss is always fp32. `auto`: bf16
    where the CPU or GPU has instructions for it."""
    seed: int = 0
    """Seed of the data order."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Steps between two checkpoints of either training; 0: by time only. There is one each minute in any case."""
    weights: LossWeights = LossWeights()
    """Weights of the losses."""
    texts: Literal["paraphrases", "captions"] = "paraphrases"
    """`captions` puts the caption in place of both paraphrases: the control that shows where a gain comes from."""
    distil: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean of 1 - cosine between the captions' embeddings and the base encoder's: against forgetting."""
    ranking_distillation: RankingDistillation = RankingDistillation()
    """Ranking distillation with the base."""
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training images that is held out to choose α."""
    alpha: AlphaOptions = AlphaOptions()
    """Interpolation with the base."""
