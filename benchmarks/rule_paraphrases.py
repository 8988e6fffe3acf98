"""A control of another kind: rules' rewordings in the place of a language model's, for the same captions.

    python benchmarks/rule_paraphrases.py PARAPHRASES -o FILE

PARAPHRASES is a table of the engine `file` with `caption`, `paraphrase_1` and `paraphrase_2`. FILE has the same
captions, each with two other variations by the rules of `query_pairs`, drawn by the caption's hash.
"""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from record import arguments

from paraclip_core.evaluation.benchmarks.query_pairs import by_rule


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("paraphrases", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for caption in pq.read_table(options.paraphrases, columns=["caption"])["caption"].to_pylist():
        # A tokenizer does not see case.
        texts = [pair.other for pair in by_rule(caption) if pair.part != "capitals"]
        first, second = random.Random(caption).sample(texts, 2)
        rows.append({"caption": caption, "paraphrase_1": first, "paraphrase_2": second})
    pq.write_table(pa.Table.from_pylist(rows), options.output)
    print(f"{len(rows)} captions, such as {rows[0]}")


if __name__ == "__main__":
    main()
