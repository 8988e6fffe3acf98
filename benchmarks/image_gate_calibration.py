"""What the image gate of fine-tuning costs and catches, on hand-labelled paraphrases of Flickr8k captions.

    python benchmarks/image_gate_calibration.py --data FOLDER --root ROOT

FOLDER holds ``flickr8k/``; ROOT is an artifact root of `configs/flickr8k.yaml` with its artifacts `bootstrap` and
`features`. A pair is stopped where the base's cosine with the image is lower for the answer than for the caption by
more than the margin. For comparison: the sentence encoder's cosine of caption and answer, which needs no image.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from flickr8k_pairs import read_pairs
from numpy.typing import NDArray

from paraclip_core.clip.load import load_clip
from paraclip_core.clip.model import ClipModel
from paraclip_core.clip.tokenizer import tokenize
from paraclip_core.paraphrase.meaning import SentenceEncoder
from paraclip_core.training.alpha import image_cosines
from storage.artifacts import Artifact, ArtifactStore
from tasks.training.data import Images

MARGINS = (0.0, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15)
SHARE = 0.1
Values = NDArray[np.float64]


def newest(store: ArtifactStore, stage: str) -> Artifact:
    """The artifact of a stage that was made last."""
    return max(store.list(stage), key=lambda made: made.manifest.created)


def auc(scores: Values, changed: NDArray[np.bool_]) -> float:
    """Chance that a changed pair scores higher than a faithful one."""
    one, two = scores[changed][:, None], scores[~changed]
    return float((one > two).mean() + 0.5 * (one == two).mean())


def row(name: str, drop: Values, changed: NDArray[np.bool_]) -> str:
    """Margin by margin: false rejects / false accepts in percent."""
    cells = [f"{100 * (drop[~changed] > m).mean():.0f} / {100 * (drop[changed] <= m).mean():.0f}" for m in MARGINS]
    counts = f"{(~changed).sum()} + {changed.sum()}"
    return f"| {name} | {counts} | {auc(drop, changed):.2f} | " + " | ".join(cells) + " |"


def tables(data: Path, clip: ClipModel, images: Images) -> Iterator[str]:
    """The table as Markdown."""
    pairs = read_pairs(data)
    rows = images.find(pa.array([pair["image"] for pair in pairs]))
    features = np.asarray(images.matrix[rows], np.float32)
    told, found = (image_cosines(clip, tokenize(clip, [p[k] for p in pairs]), features) for k in ("caption", "answer"))
    encoder = SentenceEncoder()
    one, two = (encoder.encode([pair[key] for pair in pairs]) for key in ("caption", "answer"))
    changed = np.array([pair["label"] == "changed" for pair in pairs])
    kept = np.array([pair["gate"] is None for pair in pairs])
    step = np.array([pair["step"] for pair in pairs])
    unseen = images.places[rows] < SHARE
    groups = {
        "step 1, kept by the text gates": kept & (step == 1),
        "step 2, kept by the text gates": kept & (step == 2),
        "step 2, stopped by the text gates": ~kept,
        "step 2, all, images that the base has not seen": (step == 2) & unseen,
    }
    # Another image's caption: what no reader would take for a paraphrase.
    shuffled = np.roll(np.arange(len(pairs)), 37)
    other = image_cosines(clip, tokenize(clip, [pairs[at]["answer"] for at in shuffled]), features)
    yield f"Mean cosine with the image: captions {told.mean():.3f}, answers {found.mean():.3f}.\n"
    yield "| pairs | faithful + changed | AUC | " + " | ".join(f"{margin:g}" for margin in MARGINS) + " |"
    yield "|---|---|---|" + "---|" * len(MARGINS)
    for name, here in groups.items():
        yield row(name, (told - found)[here], changed[here])
    both = np.concatenate([(told - found)[~changed], told - other])
    yield row("faithful ones against answers for other images", both, np.arange(len(both)) >= (~changed).sum())
    yield "\nAUC of the sentence encoder's 1 − cosine(caption, answer), without an image:"
    for name, here in groups.items():
        yield f"- {name}: {auc((1 - (one * two).sum(axis=1))[here].astype(np.float64), changed[here]):.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--root", type=Path, required=True)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    store = ArtifactStore(chosen.root)
    clip = load_clip(f"local-dir:{newest(store, 'bootstrap').path / 'release'}", torch.device("cpu"))
    print("\n".join(tables(chosen.data, clip, Images(newest(store, "features").path))))


if __name__ == "__main__":
    main()
