"""Words that nobody trained on, in halves: one may choose a recipe, the other is read for finalists alone.

    python benchmarks/rewordings.py DATA -o FOLDER

DATA has `rewordings/val.jsonl`: a caption of each image with a paraphrase, a short query and a hard negative that a
large language model wrote by hand. Writes `rewordings_even.jsonl` and `rewordings_odd.jsonl`, by the hash of the image,
for benchmarks of the kind `query_pairs`.
"""

from __future__ import annotations

import json
from pathlib import Path

from record import arguments

from paraclip_core.captions.keys import text_keys


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    lines = (options.data / "rewordings" / "val.jsonl").read_text("utf-8").splitlines()
    odd = text_keys([json.loads(line)["image"] for line in lines]) % 2 == 1
    options.output.mkdir(parents=True, exist_ok=True)
    for name, half in (("even", ~odd), ("odd", odd)):
        chosen = [line for line, wanted in zip(lines, half.tolist(), strict=True) if wanted]
        (options.output / f"rewordings_{name}.jsonl").write_text("\n".join(chosen) + "\n", "utf-8")
        print(f"{name}: {len(chosen)} images")


if __name__ == "__main__":
    main()
