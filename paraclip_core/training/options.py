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
    """Factor of the cosines at the start (CLIP's 1/0.07), which is then learned. Frozen features that are close
    together need more: 50 with `model.embed_dim: 1280`, which keeps all information of the image encoder."""


class LossWeights(Options):
    """Weights of the contrastive losses: InfoNCE or, against images if the base has a logit bias, the pairwise
    sigmoid; the published method is the sum of the first three."""

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
    """Ranking distillation: caption and both paraphrases learn to rank a batch's images as the base does."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean KL divergence from the base's ranking; 0: none."""
    teacher: Literal["caption", "mean"] = "caption"
    """Query for the base's ranking: the caption, or the mean of its features of caption and paraphrases. The mean is
    the better teacher if a language model wrote the paraphrases, but the base must embed three texts per row for it."""


class AlphaOptions(Options):
    """Interpolation of the tuned text encoder with the base's (WiSE), chosen on validation."""

    grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of α to try: 1 is the tuned encoder as trained, 0 the base, which is always tried."""
    max_recall_drop: Annotated[float, Field(ge=0)] = 0.5
    """Points of validation text→image recall@10 that may be lost; among the rest the best AO@10 wins. With fewer than
    twenty held-out images, both use half their number in place of ten."""
    recall_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """How many points of AO@10 a point of recall@10 is worth in this choice: at 1 the best sum of both wins."""


class FinetuneOptions(Options):
    """Training of the text encoder on captions, both paraphrases and image features."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Rows in a batch, which is also the number of candidates in each contrastive loss."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """AdamW's decay of matrices (gains, biases and the logit scale have none)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the text encoder, also while the built-in base is trained; the loss is always fp32. `auto`: bf16
    if the CPU or GPU has instructions for it."""
    seed: int = 0
    """Seed of the data order."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Steps between two checkpoints of either training; 0: by time only. In any case one is written every minute."""
    weights: LossWeights = LossWeights()
    """Weights of the losses."""
    texts: Literal["paraphrases", "captions"] = "paraphrases"
    """`captions` puts the caption in place of both paraphrases: the control that shows where a gain comes from."""
    distil: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean of 1 - cosine between the captions' embeddings and the base's, which reduces forgetting."""
    ranking_distillation: RankingDistillation = RankingDistillation()
    """Ranking distillation with the base."""
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training images held out to choose α."""
    alpha: AlphaOptions = AlphaOptions()
    """Interpolation with the base."""
