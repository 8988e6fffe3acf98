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

LEFT_OUT = frozenset("a an the its his her their some this that is are was were be being has have of to and".split())
PREPOSITIONS = frozenset(
    "in on with at near by through over under across into along behind down up beside between from around "
    "against".split()
)
ENDS = PREPOSITIONS | frozenset("while as who which that is are was were and wearing holding looking , . ;".split())


def digest(text: str) -> str:
    """SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def short_query(caption: str) -> str:
    """What somebody in a hurry would type."""
    words = re.findall(r"[a-z']+|[,.;]", caption.lower())
    end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
    query = [word for word in words[:end] if word not in LEFT_OUT]
    form = int(digest(caption), 16) % 3
    if form and end < len(words) and words[end] in PREPOSITIONS and len(query) <= 2:
        rest = words[end + 1 :]
        stop = next((place for place, word in enumerate(rest) if word in ENDS), len(rest))
        after = [word for word in rest[:stop] if word not in LEFT_OUT][:2]
        if after:
            query += [*([words[end]] if form == 1 else []), after[-1]]
    return " ".join(query)


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
