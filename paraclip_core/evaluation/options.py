"""The options below `evaluate`: what is measured, and when a tuned model may replace its base."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from paraclip_core.evaluation.benchmarks import BENCHMARKS, check_metric, check_options, find_benchmark
from paraclip_core.options import Options, json_fields

if TYPE_CHECKING:
    BenchmarkKind = str
else:
    BenchmarkKind = Literal[tuple(BENCHMARKS)]

HELD_OUT = "held_out_queries"
BY_RULE = "held_out_by_rule"
"""Names of the benchmarks that `evaluate.queries` adds: in a language model's words, and in those of rules if the same
model wrote what is trained on."""
RECALL_LOSS = 1.0
"""Points of recall that may be lost at any depth, unless `gate.max_drop` names that recall."""
WHOLE = {"fraction": 1.0, "keep": 1}
"""Options of `paraphrase` that do not apply to `evaluate.queries`, with their values there."""


class BenchmarkOptions(Options):
    """One benchmark: a local file or folder in its published format, or the ingested split."""

    name: str
    """Name in tables and results."""
    kind: BenchmarkKind
    """What is measured (docs/benchmarks.md)."""
    path: str | None = None
    """File or folder, relative to `data.root`. Default: the captions of `evaluate.split`. Of several splits the test
    split is read, or else val. Parquet with pictures, a file or a folder of shards, works for both kinds of
    retrieval."""
    optional: bool = False
    """Skip the benchmark, with a notice, if its path is absent."""
    images: str | None = None
    """Folder, tar or Parquet with the benchmark's images, relative to `data.root`, if they are not next to its
    path."""
    options: dict[str, Any] = Field(default={})
    """Options of the kind (docs/benchmarks.md)."""

    @model_validator(mode="after")
    def _suits_kind(self) -> BenchmarkOptions:
        json_fields(self.options)
        if self.options:
            check_options(self.kind, self.options)
        if self.images is not None and (self.path is None or not find_benchmark(self.kind).needs_images):
            raise ValueError(f"{self.kind} reads no images in addition to its path; leave out `images`")
        return self


class GateRule(Options):
    """When a tuned model may replace its base, or the model in use."""

    metric: str = "paraphrased_retrieval/corrected_ao@10"
    """`kind/metric` whose interval must be above zero (below, if lower is better), and over the control, too, if
    there is one. Where the images of queries are known, none of their recalls may be lost; if paraphrased queries find
    theirs more often, agreement need not grow. The captions of `paraphrased_retrieval` stand in for `query_pairs` if
    these are not measured."""
    max_drop: dict[str, float] = Field(default={"retrieval/text_to_image_recall@10": 1.0})
    """Points that a metric may lose, as `kind/metric: points`: it may not be shown to fall by a loss that may be
    larger. Any other recall may lose one point."""
    max_first_image_changes: Annotated[float, Field(ge=0, le=100)] | None = None
    """Percentage of queries that may show another first image than with the model in use. Default: any."""

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
    queries: dict[str, Any] | None = Field(default={})
    """Paraphrase held-out captions, one for each of at most 1,000 images of `split`, into the benchmark
    `held_out_queries`. The value holds the options of `paraphrase` in which its engine differs, e.g. `{model: gpt-4o}`;
    `{}`: the same engine. A model that is measured in the words of its own teacher flatters itself, so without another
    `model` the captions are also measured in the words of rules, as `held_out_by_rule`, and the gate goes by the lower.
    `fraction` and `keep` do not apply. null: off."""
    gate: GateRule = GateRule()
    """The rule for the verdict."""
    control: bool = False
    """Train and measure the control in the same run: the same fine-tuning on captions only, with its own choice of
    recipe, learning rate and α. The gain over it is what the paraphrases are worth. It costs a second fine-tuning, with
    a third of the texts."""

    @field_validator("queries")
    @classmethod
    def _query_options(cls, queries: dict[str, Any] | None) -> dict[str, Any] | None:
        if unused := WHOLE.keys() & (queries or {}).keys():
            raise ValueError(
                f"{min(unused)} does not apply: each of the chosen captions is paraphrased once; leave it out"
            )
        return queries if queries is None else json_fields(queries)

    @model_validator(mode="after")
    def _own_name(self) -> EvaluateOptions:
        taken = [benchmark.name for benchmark in self.benchmarks if benchmark.name in (HELD_OUT, BY_RULE)]
        if self.queries is not None and taken:
            raise ValueError(
                f"benchmarks: {taken[0]!r} is the name of a benchmark that evaluate.queries adds; give yours another "
                "one, or set evaluate.queries: null"
            )
        return self
