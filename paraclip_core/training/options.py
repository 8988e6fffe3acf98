"""The options of both trainings, `built_in_base` and `finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from paraclip_core.options import OPERATIONAL, Options

Rate = Annotated[float, Field(gt=0, le=1)]
BaseKind = Literal["built-in", "clip", "siglip"]


def _several(value: Any) -> Any:
    """One value as a list of one."""
    return value if value is None or (isinstance(value, Sequence) and not isinstance(value, str)) else (value,)


def _one_or_several(one: dict[str, Any]) -> WithJsonSchema:
    """The schema of a value or a list of them, for editors and the form of the Prefect UI."""
    return WithJsonSchema({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})


Rates = Annotated[
    tuple[Rate, ...],
    BeforeValidator(_several),
    Field(min_length=1),
    _one_or_several({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
]


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
    hard_negatives: Annotated[float, Field(ge=0)] = 0.0
    """Weight of hard negatives made by rule, one for each caption: a negation of it, or the caption with another word
    in place of one. It is one more negative of its row in the losses between texts, and as heavy as the others if the
    weight is 1. With ranking distillation the text is also a third of a ranking term of its own: it keeps the base's
    ranking. In each epoch a rewording by rule, the caption without function words, also replaces one of its two
    paraphrases. 0: neither."""

    @property
    def against_images(self) -> bool:
        """Whether a text is compared with the image that it belongs to."""
        return bool(self.image_paraphrase_2 or self.image_caption)

    @model_validator(mode="after")
    def _some_loss(self) -> LossWeights:
        if not any(self.model_dump(exclude={"hard_negatives"}).values()):
            raise ValueError("at least one loss weight must be above 0; hard_negatives is no loss by itself")
        if self.hard_negatives and not (self.caption_paraphrase_1 or self.paraphrase_1_paraphrase_2):
            raise ValueError(
                "hard_negatives are negatives of the losses between texts, which are all 0; set caption_paraphrase_1 "
                "or paraphrase_1_paraphrase_2 above 0, or hard_negatives to 0"
            )
        return self


class RankingDistillation(Options):
    """Ranking distillation: caption and both paraphrases learn to rank a batch's images as the base does."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean KL divergence from the base's ranking; 0: none."""
    teacher: Literal["caption", "mean"] = "caption"
    """Query for the base's ranking: the caption, or the mean of its features of caption and paraphrases. The mean is
    the better teacher if a language model wrote the paraphrases, but the base must embed three texts per row for it."""


class StepOptions(Options):
    """How a text encoder is trained, whatever its losses."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 10.0
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 256
    """Rows in a batch, which is also the number of candidates in each contrastive loss."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the text encoder, also while the built-in base is trained; the loss is always fp32. `auto`: bf16
    if the CPU or GPU has instructions for it."""
    seed: int = 0
    """Seed of the data order."""
    checkpoint_steps: Annotated[int, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Steps between two checkpoints of either training; 0: by time only. In any case one is written every minute."""


class RecipeOptions(Options):
    """The losses of a training."""

    weights: LossWeights = LossWeights()
    """Weights of the losses, for the recipe `own`."""
    feature_distillation: Annotated[float, Field(ge=0)] = 0.0
    """Weight of feature distillation, the mean of 1 - cosine, for the recipe `own`: of every text of a row from the
    mean of the base's features of caption and paraphrases, or of the caption from its own feature, as
    `ranking_distillation.teacher` says; 0: none."""
    ranking_distillation: RankingDistillation = RankingDistillation()
    """Ranking distillation with the base, for the recipe `own`."""

    @property
    def suits_log(self) -> bool:
        """Whether queries of a log can be trained with them: they belong to no image, and only ranking distillation
        keeps what an index finds."""
        return not self.weights.against_images and self.ranking_distillation.weight > 0


@dataclass(frozen=True)
class Recipe:
    """Losses that have a name."""

    losses: RecipeOptions
    about: str
    default: bool = True
    """Whether it is tried if none is named."""


RANKING = RankingDistillation(weight=16.0, teacher="mean")
RECIPES = {
    "published": Recipe(RecipeOptions(), "the published losses"),
    "anchored": Recipe(
        RecipeOptions(weights=LossWeights(image_caption=1.0), feature_distillation=10.0),
        "with an image~caption loss and a pull towards the base's embeddings",
    ),
    # No losses against images, which a few thousand rows teach by heart.
    "ranking": Recipe(
        RecipeOptions(weights=LossWeights(image_paraphrase_2=0.0), ranking_distillation=RANKING),
        "no losses against images, but ranking distillation from the mean of all texts",
        default=False,
    ),
    # Hard negatives, so that paraphrases do not draw texts of different meaning together; rewordings as people search.
    "contrast": Recipe(
        RecipeOptions(
            weights=LossWeights(image_paraphrase_2=0.0, hard_negatives=1.0),
            feature_distillation=300.0,
            ranking_distillation=RANKING,
        ),
        "`ranking` with feature distillation, and hard negatives and rewordings made by rule",
    ),
    "captions": Recipe(
        RecipeOptions(
            weights=LossWeights(
                image_paraphrase_2=0.0, caption_paraphrase_1=0.0, paraphrase_1_paraphrase_2=0.0, image_caption=1.0
            ),
            feature_distillation=10.0,
        ),
        "image~caption alone, with the pull of `anchored`: what captions teach without paraphrases",
        default=False,
    ),
}
"""Every recipe but `own`, whose losses are set one by one; to add one, add a row."""
OWN = "own"
DEFAULT_RECIPES = tuple(name for name, recipe in RECIPES.items() if recipe.default)
LOG_RECIPES = tuple(name for name in DEFAULT_RECIPES if RECIPES[name].losses.suits_log)
"""The recipes that are tried for queries of a log if none is named."""
CONTROL_RECIPES = ("ranking", "captions")
"""Recipes that a caption-only control tries besides those of its run. Where all texts of a row are one, the losses
between texts only repel, so that a control without recipes of its own would be weak."""
if TYPE_CHECKING:
    RecipeName: TypeAlias = str
else:
    RecipeName = Literal[(*RECIPES, OWN)]
RecipeNames = Annotated[
    tuple[RecipeName, ...],
    BeforeValidator(_several),
    Field(min_length=1),
    _one_or_several({"type": "string", "enum": [*RECIPES, OWN]}),
]
RETENTION = 65.0
"""Percentage of the base's first ten images that a query of a log has to keep on average; see decision 27."""
RATES: dict[BaseKind, tuple[float, ...]] = {
    "built-in": (3e-4, 1e-3, 3e-3),
    "clip": (3e-6, 1e-5, 3e-5),
    "siglip": (3e-6, 1e-5, 3e-5),
}
"""Learning rates to try, by the kind of the base."""


class TrainingOptions(RecipeOptions, StepOptions):
    """A single training: its losses, its steps and its learning rate."""

    learning_rate: Rate = 2e-4
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """AdamW's decay of matrices (gains, biases and the logit scale have none)."""


class AlphaOptions(Options):
    """Interpolation of the tuned text encoder with the base's (WiSE), chosen on validation."""

    grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of α to try: 1 is the tuned encoder as trained, 0 the base, which is always tried, too, unless there is
    only one value: then that one is used, whatever it costs."""


class FinetuneOptions(RecipeOptions, StepOptions):
    """Training of the text encoder on captions, both paraphrases and image features.

    Every recipe is trained at every learning rate, from the same base on the same rows. Held-out images choose among
    them and α.
    """

    recipe: RecipeNames | None = Field(
        default=None,
        description=f"One or several of {', '.join(f'`{name}` ({recipe.about})' for name, recipe in RECIPES.items())} "
        f"and `{OWN}` (`weights`, `feature_distillation` and `ranking_distillation`). Default: `{OWN}` if one of these "
        "three is set, "
        f"otherwise {', '.join(f'`{name}`' for name in DEFAULT_RECIPES[:-1])} and `{DEFAULT_RECIPES[-1]}`.",
    )
    learning_rate: Rates | None = None
    """Peak learning rate, or several to try. Default: a short list that suits the kind of the base."""
    texts: Literal["paraphrases", "captions"] = "paraphrases"
    """`captions` puts the caption in place of both paraphrases: the control that shows where a gain comes from."""
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training images held out to choose recipe, learning rate and α."""
    alpha: AlphaOptions = AlphaOptions()
    """Interpolation with the base."""

    @model_validator(mode="after")
    def _own_losses(self) -> FinetuneOptions:
        if self.recipe is not None and OWN not in self.recipe and (ignored := self._own()):
            raise ValueError(f"{', '.join(ignored)} would be ignored: only the recipe `own` reads it")
        return self

    def _own(self) -> list[str]:
        """The losses that differ from the published ones."""
        default = RecipeOptions()
        return [name for name in RecipeOptions.model_fields if getattr(self, name) != getattr(default, name)]

    def recipes(self, default: Sequence[RecipeName] = DEFAULT_RECIPES) -> dict[RecipeName, RecipeOptions]:
        """The losses of each recipe to try, by its name: of those that are named, or else of the `default` ones."""
        names = self.recipe or ((OWN,) if self._own() else default)
        return {name: self if name == OWN else RECIPES[name].losses for name in names}

    def candidates(self, kind: BaseKind, default: Sequence[RecipeName] = DEFAULT_RECIPES) -> tuple[Candidate, ...]:
        """Every recipe to try at every learning rate, for a base of this kind."""
        shared = {name: getattr(self, name) for name in StepOptions.model_fields}
        candidates = []
        for recipe, losses in self.recipes(default).items():
            terms = {name: getattr(losses, name) for name in RecipeOptions.model_fields}
            for rate in sorted(set(self.learning_rate or RATES[kind])):
                candidates.append(Candidate(recipe, TrainingOptions(**shared, **terms, learning_rate=rate)))
        return tuple(candidates)


@dataclass(frozen=True)
class Candidate:
    """A recipe at a learning rate."""

    recipe: RecipeName
    options: TrainingOptions

    @property
    def name(self) -> str:
        """For example ``ranking at 0.001``."""
        return f"{self.recipe} at {self.options.learning_rate:g}"

    @property
    def losses(self) -> dict[str, Any]:
        """The options of its losses as plain values."""
        return self.options.model_dump(mode="json", include=set(RecipeOptions.model_fields))
