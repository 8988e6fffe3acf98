"""One step or two: paraphrase 2 of paraphrase 1, as published, against paraphrase 2 straight from the caption.

    python benchmarks/one_step.py -c configs/demo.yaml --seeds 3
    python benchmarks/one_step.py -c mine.yaml --set paraphrase.engine=openai

Any engine: step 2's prompt is asked of the captions, and step 1's gates judge the answers. Both variants then train on
the same captions, those that have a pair in both, with the same paraphrase 1. Answers come from the root's cache and go
there, so that a second call asks nothing. The table is that of ablations.py.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from ablations import METRICS, measure, row

from paraclip.storage.parquet import iter_batches
from paraclip.tasks.run.dag import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.paraphrase import prompts
from paraclip_core.settings import load_settings

TEXTS = ("caption", "paraphrase_1", "paraphrase_2")


def two_steps(settings: Settings) -> dict[str, tuple[str, str]]:
    """Both paraphrases of each caption that has them."""
    run = Run(settings)
    for name in ("scenes", "ingest", "paraphrase_1"):
        if name in run.stages:
            run_stage(name, run)
    rows = texts_of(run_stage("paraphrase_2", run).path, TEXTS)
    return {caption: (first, second) for caption, first, second in rows if second is not None}


def straight(settings: Settings) -> dict[str, str]:
    """What step 2's prompt makes of the captions themselves."""
    own = settings.paraphrase.model_copy(update={"prompt_1": settings.paraphrase.prompt_2})
    settings = settings.model_copy(update={"paraphrase": own})
    for chosen in (prompts.PAPER, prompts.FEW_SHOT):
        chosen[1] = chosen[2]
    # In this process, which has the other prompts.
    stages = {name: replace(stage, isolated=False) for name, stage in Run(settings).stages.items()}
    artifact = run_stage("paraphrase_1", Run(settings, stages=stages))
    return {caption: text for caption, text in texts_of(artifact.path, TEXTS[:2]) if text is not None}


def texts_of(artifact: Path, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Rows of an artifact's paraphrases."""
    batches = iter_batches(artifact / "paraphrases", list(columns))
    return [tuple(found[name] for name in columns) for batch in batches for found in batch.to_pylist()]


def main() -> None:
    """Paraphrase both ways, train on each, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", required=True, type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="a.b=c")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("one-step"), help="folder of the two files of paraphrases")
    chosen = parser.parse_args()
    settings = load_settings(chosen.config, chosen.overrides, os.environ)
    two, one = two_steps(settings), straight(settings)
    both = sorted(two.keys() & one.keys())
    print(f"{len(two)} captions with two steps, {len(one)} with one, {len(both)} with both\n")
    chosen.out.mkdir(parents=True, exist_ok=True)
    print(f"| variant | α | validation | {' | '.join(METRICS)} | verdicts |\n|---|---|---|{'---|' * len(METRICS)}---|")
    for name, second in (("two steps", {caption: two[caption][1] for caption in both}), ("one step", one)):
        path = (chosen.out / f"{name.replace(' ', '-')}.jsonl").absolute()
        rows = ({"caption": c, "paraphrase_1": two[c][0], "paraphrase_2": second[c]} for c in both)
        path.write_text("".join(json.dumps(line) + "\n" for line in rows), "utf-8")
        file = ["paraphrase.engine=file", f"paraphrase.file.path={path}"]
        seeds = [[*chosen.overrides, *file, f"finetune.seed={seed}"] for seed in range(chosen.seeds)]
        print(row(name, [measure(load_settings(chosen.config, every, os.environ)) for every in seeds]), flush=True)


if __name__ == "__main__":
    main()
