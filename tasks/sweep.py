"""Which options make an engine fastest here: each combination is measured, and one that failed is not tried again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import yaml

from paraclip_core.config import ParaphraseOptions, Settings, meaning
from paraclip_core.errors import BudgetError, ConfigError, EngineError, InputError, StageError
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.plain_yaml import load_yaml
from paraclip_core.progress import Progress, silent
from storage.artifacts import ArtifactStore
from storage.rates import known_trials, remember_trial
from tasks.calibration import ANEW, FEWEST, calibrate, captions_left, captions_needed, expect_rate, in_flight
from tasks.models import model_hashes
from tasks.rates import Measured

__all__ = ["DEFAULT_TRIALS", "OTHER_TRIALS", "Plan", "Trial", "combinations", "counted", "prepare", "sweep"]

DEFAULT_TRIALS: Mapping[str, tuple[str, ...]] = {
    "openai": ("paraphrase.openai.concurrency=4,16,64",),
    "smollm2": ("paraphrase.smollm2.max_num_seqs=16,64,256",),
    "transformers": ("paraphrase.transformers.batch_size=16,64,256",),
    "vllm": (
        "paraphrase.vllm.max_num_seqs=64,256,512",
        "paraphrase.vllm.max_num_batched_tokens=4096,16384",
        "paraphrase.vllm.speculative_config=null,{method: ngram, num_speculative_tokens: 4, prompt_lookup_max: 4}",
    ),
}
"""What is tried where a user names nothing, by engine."""
OTHER_TRIALS = ("paraphrase.chunk=16,64,256",)
"""The same of engines that `DEFAULT_TRIALS` does not name."""

CAPTIONS = 64
"""Captions for each combination, at least, where a user does not say how many."""

REASON = 200
"""Characters of a failure's reason that are kept."""


@dataclass(frozen=True)
class Trial:
    """What became of one combination of options."""

    options: str
    measured: Measured | None
    failure: str = ""
    """Why there is nothing measured."""
    tried: bool = True
    """False where it failed in an earlier sweep and was left out."""


@dataclass(frozen=True)
class Plan:
    """What a sweep would measure."""

    model: str
    trials: Mapping[str, Settings]
    """The settings of each combination, by its name."""
    captions: int
    """For each combination the same number."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Combinations that failed in an earlier sweep and are left out, and why."""
    notices: tuple[str, ...] = ()
    """What was left out of the combinations asked for, or cannot show, and why."""


def combinations(tries: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of ``path=value,value,…``, each as overrides ``path=value``.

    The values are those of a YAML list without its brackets, so that one may be ``null`` or a group ``{a: 1, b: 2}``.

    Raises:
        ConfigError: one of them has another form.
    """
    axes = []
    for text in tries:
        path, _, values = (part.strip() for part in text.partition("="))
        try:
            found = load_yaml(f"[{values}]") if path else []
        except ValueError:
            found = []
        if not (isinstance(found, list) and found):
            raise ConfigError(
                f"{text!r} is nothing to try; write an option and its values, paraphrase.chunk=64,256 (a value with a "
                "comma in it as YAML: null,{a: 1, b: 2})"
            )
        axes.append(list(dict.fromkeys(f"{path}={_spelled(value)}" for value in found)))
    return list(product(*axes))


def _spelled(value: Any) -> str:
    """A value as `--set` reads it, on one line."""
    text = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    return text.strip()[1:-1]


def prepare(
    base: Settings,
    trials: Mapping[str, Settings],
    store: ArtifactStore,
    captions: int | None = None,
    again: bool = False,
    shrink: bool = False,
) -> Plan:
    """Decide how many captions each combination gets, and see that there are as many.

    Each gets the same number: as many as the largest of them needs to fill the engine twice, or the difference between
    two of them could not show.

    Args:
        base: the run's own settings.
        trials: the settings of each combination, by its name.
        store: the artifact store.
        captions: captions for each combination; None: as many as it takes.
        again: also try what failed before.
        shrink: leave combinations out, and say so, where captions are too few for all of them.

    Raises:
        ConfigError: an option that changes results is to be tried, the engine has no rate, or `captions` is too small.
        InputError: too few captions are left.
    """
    for name, settings in trials.items():
        if meaning(settings.paraphrase) != meaning(base.paraphrase):
            raise ConfigError(f"{name} changes what is asked for, not only how fast; try options that do not")
    expect_rate(base)
    model = make_engine(base.paraphrase, base.data.root, hash_files=model_hashes(base)).model
    before = known_trials(store.cache, base.paraphrase.engine, model)
    failed = {name: before[name]["failure"] for name in trials if "failure" in before.get(name, {})}
    wanted = {name: settings for name, settings in trials.items() if again or name not in failed}
    failed = {name: reason for name, reason in failed.items() if name not in wanted}
    needs = {name: captions_needed(settings.paraphrase) for name, settings in wanted.items()}
    if not wanted:
        return Plan(model, {}, 0, failed)
    if captions is not None and captions < max(needs.values()):
        raise ConfigError(
            f"--captions {captions} is too few: {_why(wanted, needs)}; leave --captions out to have as many"
        )
    each = captions or max(CAPTIONS, *needs.values())
    left = captions_left(base, store, each * len(wanted))
    unseen = _unseen([settings.paraphrase for settings in wanted.values()])
    if left >= each * len(wanted):
        return Plan(model, wanted, each, failed, unseen)
    why = f" ({_why(wanted, needs)})" if each == max(needs.values()) else ""
    text = (
        f"{counted(len(wanted))} would take {each * len(wanted)} captions, {each} each{why}, and "
        f"{left} training captions are without an answer of {model}"
    )
    chosen = _fitting(needs, left, captions) if shrink else []
    if not chosen:
        raise InputError(f"{text}; {_advice(base, left, needs)}")
    out = ", ".join(name for name in wanted if name not in chosen)
    each = captions or max(CAPTIONS, *(needs[name] for name in chosen))
    return Plan(model, {name: wanted[name] for name in chosen}, each, failed, (*unseen, f"{text}: left out {out}"))


def _unseen(tried: Sequence[ParaphraseOptions]) -> tuple[str, ...]:
    """Which of the engine sizes that are compared cannot show, as chunks are too small to fill them."""
    if len({_seats(options) for options in tried}) < 2:
        return ()
    notices = {}
    for options in tried:
        seats, n = _seats(options), options.sampling.n
        if seats > options.chunk * n:
            notices[seats, options.chunk] = (
                f"{seats} answers may be drawn at once, but no more than {options.chunk * n} are asked for (a chunk of "
                f"{options.chunk} × {n}): --set paraphrase.chunk={min(1024, -(-seats // n))} asks for more"
            )
    return tuple(notices.values())


def _seats(options: ParaphraseOptions) -> int:
    """Answers that the engine draws at once, at most; 0 where nobody says."""
    if options.engine == "smollm2":
        return options.smollm2.max_num_seqs
    if options.engine == "transformers":
        return options.transformers.batch_size
    return options.vllm.max_num_seqs or 0 if options.engine == "vllm" else 0


def counted(count: int) -> str:
    """So many combinations, in words."""
    return f"{count} combinations" if count > 1 else "1 combination"


def _why(trials: Mapping[str, Settings], needs: Mapping[str, int]) -> str:
    name = max(needs, key=lambda name: needs[name])
    size = in_flight(trials[name].paraphrase)
    return f"{name} takes {needs[name]}, twice the {size} requests that it has in flight and a few to warm up"


def _fitting(needs: Mapping[str, int], left: int, captions: int | None) -> list[str]:
    """As many combinations as there are captions for, two at least or none, and of those the ones that need most."""
    order = sorted(needs, key=lambda name: needs[name])
    for count in range(len(order) - 1, 1, -1):
        # From the end, but of those that need the same the first.
        starts = sorted(range(len(order) - count + 1), key=lambda start: (-needs[order[start + count - 1]], start))
        for start in starts:
            some = order[start : start + count]
            if (captions or max(CAPTIONS, needs[some[-1]])) * count <= left:
                return [name for name in needs if name in some]
    return []


def _advice(base: Settings, left: int, needs: Mapping[str, int]) -> str:
    each = left // max(len(needs), 2)
    if each < FEWEST:
        return f"more captions (data) or a larger paraphrase.fraction help, and {ANEW}"
    most = max(1, (each - FEWEST // 2) // 2)
    option = "paraphrase.openai.concurrency" if base.paraphrase.engine == "openai" else "paraphrase.chunk"
    return f"try fewer combinations, or as many with {option} up to {most}; {ANEW}"


def sweep(
    base: Settings,
    plan: Plan,
    store: ArtifactStore,
    watch: Callable[[str], AbstractContextManager[Progress]] = lambda _: nullcontext(silent),
) -> Iterator[Trial]:
    """Measure each combination with captions that have no answer yet; the answers are kept.

    Args:
        base: the run's own settings.
        plan: what to measure (:func:`prepare`).
        store: the artifact store.
        watch: shows how far the combination under the clock is.

    Raises:
        InputError: captions were answered by somebody else meanwhile, and too few are left for an equal comparison.
        BudgetError: the spending cap is reached, which is no combination's fault.
    """
    engine = base.paraphrase.engine
    for name, reason in plan.failed.items():
        yield Trial(name, None, reason, tried=False)
    for number, (name, settings) in enumerate(plan.trials.items(), 1):
        try:
            with watch(f"trial {number} of {len(plan.trials)}") as progress:
                measured = calibrate(settings, store, plan.captions, progress, remember=False, fewest=plan.captions)
        except BudgetError:
            raise
        except (EngineError, StageError) as error:
            failure = str(error).splitlines()[0][:REASON]
            remember_trial(store.cache, engine, plan.model, name, {"failure": failure})
            yield Trial(name, None, failure)
            continue
        remember_trial(store.cache, engine, plan.model, name, asdict(measured))
        yield Trial(name, measured)
