"""How fast an engine answers here, with each combination of some options: one line each.

    python benchmarks/calibrate.py -c run.yaml [--set a.b=c] [--try paraphrase.chunk=64,256]... [--captions 64] [--dry]

With each combination the run's engine is asked for step 1 of so many training captions that have no answer yet, after a
few that load the model. Every combination gets captions of its own, whose answers stay in the run's cache, so that
nothing is paid for in vain. With `--dry` all work under a root that is deleted at the end, over the same captions.
A value that holds commas goes in braces: `--try 'paraphrase.vllm.extra={},{kv_cache_dtype: fp8}'`. An engine
is as fast as it can be only where there are several times as many captions as it has requests under way.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from paraclip.storage.artifacts import Artifact
from paraclip.storage.roots import open_store
from paraclip.tasks.context import Run, run_stage
from paraclip.tasks.stages.paraphrase import paraphrasing
from paraclip_core.config import Settings
from paraclip_core.errors import ConfigError, InputError, ParaclipError, one_line
from paraclip_core.paraphrase.prompts import prompt_for
from paraclip_core.paraphrase.requests import RowCursor, step_requests
from paraclip_core.paraphrase.rounds import Counts, RequestSender, Rounds
from paraclip_core.progress import silent
from paraclip_core.settings import load_settings

WARM = 8
"""Captions that are asked for before the clock starts: loading is not the rate."""
COMMA = re.compile(r",(?![^{]*\})")


def combinations(tries: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of ``path=value,value,…``, each as overrides ``path=value``; one empty one of nothing."""
    axes = []
    for text in tries:
        path, equals, values = text.partition("=")
        if not (path and equals and values):
            raise ConfigError(f"--try {text!r} has no values; write an option and its values, paraphrase.chunk=64,256")
        axes.append([f"{path}={value.strip()}" for value in COMMA.split(values)])
    return list(product(*axes))


def ingested(settings: Settings) -> Artifact:
    """The run's captions, ingested where they are not yet."""
    run = Run(settings)
    for name in run.stages:
        artifact = run_stage(name, run)
        if name == "ingest":
            return artifact
    raise ConfigError("a run with these settings has no stage ingest")


def unanswered(rounds: Rounds, count: int) -> list[tuple[str, bytes]]:
    """Texts and keys of so many different captions without an answer."""
    request = step_requests(rounds.options, 1, rounds.engine.model)
    rounds.tables.ask(request)
    rows = rounds.tables.missing(0)
    if len(rows) < count:
        raise InputError(
            f"{len(rows)} training captions are without an answer of {rounds.engine.model}, {count} are needed "
            f"({WARM} to warm up); lower --captions, take --dry, or set another paraphrase.seed"
        )
    texts = RowCursor(rounds.tables.batches(["caption"])).take(rows[:count]).column("caption").to_pylist()
    return list(zip(texts, request.keys(texts).to_pylist(), strict=True))


def measure(settings: Settings, captions: int) -> str:
    """Ask for so many captions; what came a second."""
    store, artifact = open_store(settings.run.root), ingested(settings)
    counts = Counts()
    with TemporaryDirectory() as temporary:
        scratch = Path(temporary) / "tables"
        with paraphrasing(Run(settings, store), 1, artifact, scratch, silent) as rounds:
            options, todo = rounds.options, unanswered(rounds, WARM + captions)
            sender = RequestSender(rounds.engine, rounds.cache, counts, options.chunk)
            request = step_requests(options, 1, rounds.engine.model)
            for part in (todo[:WARM], todo[WARM:]):
                began, tokens = time.monotonic(), counts.completion_tokens
                for _ in sender.ask(request, prompt_for(options, 1), options.sampling, part):
                    pass
                seconds, tokens = time.monotonic() - began, counts.completion_tokens - tokens
    return (
        f"{captions / seconds:.1f} requests/s, {tokens / seconds:.0f} tokens/s, {captions} captions in {seconds:.1f} s"
    )


def results(config: Path, overrides: Sequence[str], tries: Sequence[str], captions: int, dry: bool) -> Iterator[str]:
    """A line for each combination, also where it failed."""
    for combination in combinations(tries):
        with TemporaryDirectory() as temporary:
            root = [f"run.root={temporary}"] if dry else []
            name = " ".join(combination) or "as configured"
            try:
                settings = load_settings(config, [*overrides, *combination, *root], os.environ)
                yield f"{name}: {measure(settings, captions)}"
            except ParaclipError as error:
                yield f"{name}: {one_line(error)}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    parser.add_argument("--try", action="append", default=[], dest="tries", metavar="a.b=c,d")
    parser.add_argument("--captions", type=int, default=64, help="of each combination")
    parser.add_argument("--dry", action="store_true", help="keep nothing")
    chosen = parser.parse_args()
    try:
        for line in results(chosen.config, chosen.overrides, chosen.tries, chosen.captions, chosen.dry):
            print(line, flush=True)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
