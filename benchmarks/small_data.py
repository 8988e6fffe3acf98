"""What a few captioned images gain: runs over growing numbers of them, from the same base.

    python benchmarks/small_data.py --paraphrases FILE --base local-dir:FOLDER [--images 300 1000 2300] [--seeds 3]

PARACLIP_DATA names a folder with `flickr8k` and `sts/sick`. FILE is a table of `caption`, `paraphrase_1` and
`paraphrase_2`, the engine `file`'s. Each run has so many images of the training split, the first caption of each that
FILE paraphrases, and all of the split `val` to measure on; recipe, learning rate and α are chosen among the defaults,
for the control as well; the rates are those of a small base. FOLDER is an exported base. Prints the rows of the table
in docs/results.md.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
from record import arguments, data_folder

import paraclip
from paraclip_core.settings import parse_settings
from paraclip_core.training.options import RATES

SHOWN = (("sick", "ao@10"), ("sick", "margin"), ("retrieval", "text_to_image_recall@10"))
Rows = list[dict[str, str]]


def caption_rows(flickr: Path, paraphrases: Path) -> tuple[Rows, Rows]:
    """A paraphrased caption each of training images, shuffled, and all captions of `val`."""
    paraphrased = set(pq.read_table(paraphrases, columns=["caption"])["caption"].to_pylist())
    train: Rows = []
    val: Rows = []
    for image in json.loads((flickr / "dataset_flickr8k.json").read_text())["images"]:
        rows = [
            {"image": image["filename"], "caption": text["raw"], "split": image["split"]} for text in image["sentences"]
        ]
        if image["split"] == "train":
            train += [row for row in rows if row["caption"] in paraphrased][:1]
        elif image["split"] == "val":
            val += rows
    random.Random(0).shuffle(train)
    return train, val


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--paraphrases", type=Path, required=True)
    parser.add_argument("--base", required=True, help="for example local-dir:FOLDER")
    parser.add_argument("--images", type=int, nargs="+", default=[300, 1000, 2300])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, nargs="+", default=list(RATES["built-in"]))
    parser.add_argument("--root", type=Path, default=Path("runs/small-data"))
    options = parser.parse_args()
    flickr, sts = data_folder("flickr8k"), data_folder("sts")
    if flickr is None or sts is None:
        raise SystemExit("set PARACLIP_DATA to a folder with flickr8k and sts/sick")
    options.root.mkdir(parents=True, exist_ok=True)
    train, val = caption_rows(flickr, options.paraphrases)
    if len(train) < max(options.images):
        raise SystemExit(f"{options.paraphrases} paraphrases captions of {len(train)} images only")
    for seed in range(options.seeds):
        for images in options.images:
            captions = options.root.resolve() / f"captions-{images}.jsonl"
            captions.write_text("".join(json.dumps(row) + "\n" for row in train[:images] + val))
            settings = {
                "name": f"images-{images}-seed-{seed}",
                "data": {
                    "root": str(flickr.resolve()),
                    "max_words": 30,
                    "sources": [{"path": str(captions), "images": "images_128.tar"}],
                },
                "paraphrase": {"engine": "file", "file": {"path": str(options.paraphrases.resolve())}},
                "model": {"base": options.base},
                "finetune": {"seed": seed, "learning_rate": options.learning_rate},
                "evaluate": {
                    "split": "val",
                    "queries": None,
                    "control": True,
                    "gate": {
                        "metric": "query_pairs/corrected_ao@10",
                        "max_drop": {"query_pairs/margin": 1.0, "retrieval/text_to_image_recall@10": 1.0},
                    },
                    "benchmarks": [
                        {"name": "sick", "kind": "query_pairs", "path": str(sts.resolve() / "sick")},
                        {"name": "retrieval", "kind": "retrieval"},
                    ],
                },
                "run": {"root": str(options.root)},
            }
            summary = paraclip.run(parse_settings(settings)).summary
            assert summary is not None
            gains = [f"{summary['deltas'][name][metric]:+.2f}" for name, metric in SHOWN]
            over = [summary["deltas"]["sick"]["ao@10"], *summary["intervals"]["sick"]["ao@10"]]
            # A control that fell below the base stands for nothing, so the base takes its place.
            if "over_control" in summary:
                over = summary["over_control"]["sick"]["ao@10"]
            gains.append("{:+.2f} [{:+.2f}, {:+.2f}]".format(*over))
            overlap = f"{summary['churn']['overlap@10']:.0f} %"
            print("|", " | ".join([str(images), str(seed), *gains, overlap, summary["verdict"]]), "|", flush=True)


if __name__ == "__main__":
    main()
