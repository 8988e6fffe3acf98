"""A run from a large index: what checking and linking it costs, and a million queries before any is asked about.

Makes an index of `--rows` vectors (float16, `--dim` numbers each) with ids, and a log of `--queries` queries,
and measures, each in its own process, with its peak of resident memory (mapped pages included):

* `index_link`: the stage `features`, which checks every row and links the file; against loading the index as float32
  and normalizing it, scaled up from `--naive-rows`.
* `index_draw`: drawing 1,024 rows for a training step from the linked index; against the same from memory.
* `index_plan`: `plan` of the run, log included, once the hashes of its files are known.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from record import arguments, in_fresh_process, record

if TYPE_CHECKING:
    from paraclip.tasks.run.run import Run

BLOCK = 65_536
DRAWN, STEPS = 1024, 100
WORDS = (
    "dog",
    "cat",
    "car",
    "tree",
    "house",
    "beach",
    "child",
    "boat",
    "bird",
    "field",
    "man",
    "woman",
    "street",
    "snow",
)


def make(folder: Path, rows: int, dim: int, queries: int) -> dict[str, float]:
    """Write base, index, ids, log and configuration.

    In a process of its own, for a process starts with its parent's peak of memory.
    """
    import yaml
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    from paraclip_core.clip.built_in import built_in_clip
    from paraclip_core.clip.encode import encode_texts
    from paraclip_core.clip.export import save_release
    from paraclip_core.clip.options import ModelOptions

    clip = built_in_clip(ModelOptions(embed_dim=dim))
    save_release(clip, folder / "base", "")
    noise = np.random.default_rng(0)
    # As those of an index have, the vectors have to do with texts.
    texts = encode_texts(clip, list(IMAGENET_CLASSNAMES))
    texts = texts - texts.mean(0)
    shown = texts[noise.integers(0, len(texts), BLOCK)]
    block = (shown + 0.2 * texts.std() * noise.normal(size=(BLOCK, dim))).astype(np.float16)
    index = np.lib.format.open_memmap(folder / "index.npy", "w+", np.float16, (rows, dim))
    with (folder / "ids.txt").open("w") as ids:
        for start in range(0, rows, BLOCK):
            count = min(BLOCK, rows - start)
            index[start : start + count] = np.roll(block[:count], start // BLOCK, axis=0)
            ids.write("".join(f"photo-{number:09d}\n" for number in range(start, start + count)))
    del index
    with (folder / "log.csv").open("w") as log:
        log.write("query,image,count\n")
        for number in range(queries):
            words = " ".join(WORDS[place] for place in noise.integers(0, len(WORDS), 3))
            log.write(f"{words} number {number},{f'photo-{number % rows:09d}' if number % 20 == 0 else ''},1\n")
    settings = {
        "data": {
            "root": str(folder),
            "index": {"features": "index.npy", "ids": "ids.txt"},
            "sources": [{"path": "log.csv"}],
            "held_out": 0.1,
            "min_words": 1,
        },
        "paraphrase": {"engine": "file", "file": {"path": "log.csv"}, "filters": {"preset": "off"}},
        "model": {"base": f"local-dir:{folder / 'base'}"},
        "run": {"root": str(folder / "root")},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return {"rows": rows}


def link(folder: Path) -> dict[str, float]:
    """Run the stage `features`."""
    from paraclip.tasks.run.execute import run_stage

    run = _run(folder)
    began = time.perf_counter()
    run.node("features")
    hashed = time.perf_counter()
    artifact = run_stage("features", run)
    written = sum(file.size for file in artifact.manifest.files.values())
    return {"seconds": time.perf_counter() - hashed, "hash_seconds": hashed - began, "bytes_written": written}


def naive(folder: Path) -> dict[str, float]:
    """The obvious way: everything in memory, as float32, ids as a list."""
    began = time.perf_counter()
    features = np.load(folder / "index.npy").astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids = (folder / "ids.txt").read_text().splitlines()
    positions = {name: row for row, name in enumerate(ids)}
    return {"seconds": time.perf_counter() - began, "images": len(positions)}


def drawn(folder: Path) -> dict[str, float]:
    """Draw rows as a training step does."""
    from paraclip.storage.features import FeatureStore
    from paraclip_core.training.data import draw_images

    run = _run(folder)
    artifact = run.artifact("features")
    assert artifact is not None
    rows = FeatureStore(artifact.path).view()
    began = time.perf_counter()
    for step in range(STEPS):
        rows[draw_images(len(rows), DRAWN, 0, step)]
    return {"milliseconds": 1000 * (time.perf_counter() - began) / STEPS}


def plan(folder: Path) -> dict[str, float]:
    """Plan the run."""
    from paraclip.tasks.plan import plan_run

    began = time.perf_counter()
    planned = plan_run(_run(folder))
    print(planned.notes)
    return {"seconds": time.perf_counter() - began}


def _run(folder: Path) -> Run:
    from paraclip.tasks.run.run import Run
    from paraclip_core.settings import load_settings

    return Run(load_settings(folder / "run.yaml"))


PARTS = {"link": link, "naive": naive, "draw": drawn, "plan": plan}


def main() -> None:
    """Measure and print one JSON line per figure."""
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--queries", type=int, default=1_000_000)
    parser.add_argument("--naive-rows", type=int, default=1_000_000, help="rows of the side in memory")
    parser.add_argument("--part", choices=("make", *PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        if options.part == "make":
            figures = make(options.folder, options.rows, options.dim, options.queries)
        else:
            figures = PARTS[options.part](options.folder)
        peaks = [resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        print(json.dumps({**figures, "peak_gib": max(peaks)}))
        return
    with tempfile.TemporaryDirectory(prefix="paraclip-index-") as temporary:
        small, whole = Path(temporary) / "small", Path(temporary) / "whole"
        for folder, rows, queries in ((small, options.naive_rows, 10), (whole, options.rows, options.queries)):
            folder.mkdir()
            in_fresh_process(__file__, "make", folder, "--rows", rows, "--dim", options.dim, "--queries", queries)
        other = in_fresh_process(__file__, "naive", small)
        linked, step, planned = (in_fresh_process(__file__, part, whole) for part in ("link", "draw", "plan"))
    scale = options.rows / options.naive_rows
    against = f"the whole index in memory as float32, scaled up from {options.naive_rows:,} rows"
    record("index_link", linked["seconds"], "s", against, scale * other["seconds"] / linked["seconds"])
    record("index_memory", linked["peak_gib"], "GiB", against, scale * other["peak_gib"] / linked["peak_gib"])
    record("index_draw", step["milliseconds"], "ms a step", "10 ms", 10 / step["milliseconds"])
    record("index_plan", planned["seconds"], "s", "30 s", 30 / planned["seconds"])


if __name__ == "__main__":
    main()
