"""Trains a small cross-encoder for natural language inference, so that `paraphrase.gates.nli` can be measured offline.

    python benchmarks/train_nli.py --data FOLDER --out FOLDER

It starts from the packaged MiniLM and sees SICK's training split, its contradictions in both directions; on a CPU core
that takes about ten minutes. It is a yardstick for the gate and no model to rely on: SICK has 4,500 pairs, and its
license (CC BY-NC-SA) is not for every use.
"""

from __future__ import annotations

import argparse
import csv
import random
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from paraclip_core.paraphrase.meaning import NliModel, packaged_folder

LABELS = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
BATCH = 32
Example = tuple[str, str, int]


def read(path: Path) -> list[Example]:
    """Pairs of SICK with their labels."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence_A"], row["sentence_B"], LABELS.index(row["entailment_judgment"].strip())) for row in rows]


def train(examples: list[Example], out: Path, epochs: int, rate: float) -> None:
    """Fine-tune the packaged MiniLM on the examples and save it."""
    folder = packaged_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = {number: label.lower() for number, label in enumerate(LABELS)}
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(folder, id2label=names, num_labels=len(LABELS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    steps = epochs * (len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.2)
    draw, step = random.Random(0), 0
    for epoch in range(epochs):
        draw.shuffle(examples)
        for start in range(0, len(examples) - BATCH + 1, BATCH):
            first, second, labels = zip(*examples[start : start + BATCH], strict=True)
            batch = tokenizer(list(first), list(second), padding=True, truncation=True, return_tensors="pt")
            loss = model(**batch, labels=torch.tensor(labels)).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0:
                print(f"epoch {epoch + 1}, step {step} of {steps}, loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train, and print how well entailment is told from the rest on SICK's trial split."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with sts/sick/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--most", type=int, default=100_000, help="pairs to learn from")
    chosen = parser.parse_args()
    examples = read(chosen.data / "sts/sick/SICK_train.txt")
    # Contradictions of SICK hold in both directions, its entailments in one, as far as its label says.
    examples += [(two, one, label) for one, two, label in examples if label == LABELS.index("CONTRADICTION")]
    train(random.Random(1).sample(examples, min(chosen.most, len(examples))), chosen.out, chosen.epochs, chosen.rate)
    trial = read(chosen.data / "sts/sick/SICK_trial.txt")
    chances = NliModel(str(chosen.out)).entailment([(one, two) for one, two, _ in trial])
    right = sum((chance >= 0.5) == (label == 2) for chance, (_, _, label) in zip(chances, trial, strict=True))
    print(f"entailment or not: {100 * right / len(trial):.1f} % right of {len(trial)}")


if __name__ == "__main__":
    main()
