"""A log of short queries, made of Flickr8k's training captions by rule, to train on an index without captions.

    python benchmarks/short_queries.py [--queries N] -o log.csv

PARACLIP_DATA names a folder with `flickr8k`. A query is the words before a caption's first preposition, verb of being
or conjunction, without articles; if these are one or two, two captions of three go on with the last of the two words
after the preposition, one of them with the preposition: *girl bounces in house*, *lady in red*, *dog cape*. Queries of
two to four words remain; `count` says how many captions gave the same one. The N are chosen by their hash.
"""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from record import arguments, data_folder

LEFT_OUT = re.compile(r"an?|the|its|his|her|their|some|this|that|is|are|was|were|be|being|has|have|of|to|and")
PREPOSITION = re.compile(
    r"in|on|with|at|near|by|through|over|under|across|into|along|behind|down|up|beside|between|from|around|against"
)
END = re.compile(rf"{PREPOSITION.pattern}|while|as|who|which|that|is|are|was|were|and|wearing|holding|looking|[,.;]")


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def short_query(caption: str) -> str:
    """What somebody in a hurry would type."""
    before, end, after = _cut(re.findall(r"[a-z']+|[,.;]", caption.lower()))
    form = int(digest(caption), 16) % 3
    if form and PREPOSITION.fullmatch(end) and len(before) <= 2 and (place := _cut(after)[0][:2]):
        before += [end, place[-1]] if form == 1 else [place[-1]]
    return " ".join(before)


def _cut(words: list[str]) -> tuple[list[str], str, list[str]]:
    """The content words before the first word that ends a phrase, that word, and all words after it."""
    end = next((place for place, word in enumerate(words) if END.fullmatch(word)), len(words))
    content = [word for word in words[:end] if not LEFT_OUT.fullmatch(word)]
    return content, "".join(words[end : end + 1]), words[end + 1 :]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--queries", type=int, default=2500)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    folder = data_folder("flickr8k")
    if folder is None:
        raise SystemExit("set PARACLIP_DATA to a folder with flickr8k")
    images = json.loads((folder / "dataset_flickr8k.json").read_text())["images"]
    captions = [text["raw"] for image in images if image["split"] == "train" for text in image["sentences"]]
    queries = Counter(filter(lambda query: 2 <= len(query.split()) <= 4, map(short_query, captions)))
    with options.out.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["query", "count"])
        rows.writerows((query, queries[query]) for query in sorted(queries, key=digest)[: options.queries])


if __name__ == "__main__":
    main()
