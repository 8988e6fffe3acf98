"""Pairs for `query_pairs` whose hard negatives are written in different ways: like the rules of training, or not.

    python benchmarks/negation_forms.py DATA -o FOLDER

DATA has `sts/sick` and `flickr8k/dataset_flickr8k.json`. The
contradictions of SICK are divided into `sick_rules` (*not*, *no*), `sick_nobody` (*nobody* and other words of
negation), `sick_motion` (another motion or intention, which a still picture hardly shows, as *hitting* against
*missing*) and `sick_seen` (another word that a picture decides, as *indoors* against *outdoors*); of Flickr8k's
captions in the split `val`, `without` replaces *with a* by *without a*, and `nobody` the person at the beginning.

Prints the pairs of each form, and how many of SICK's texts have the content words of a training caption of Flickr8k,
word forms aside.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

from record import arguments

from paraclip_core.captions.stems import stems
from paraclip_core.evaluation.benchmarks import query_pairs

LIKE_RULES = re.compile(r"\b(?:no|not|isn't|aren't)\b", re.IGNORECASE)
OTHER_NEGATIONS = re.compile(r"\b(?:nobody|without|none|never|neither|nor|nothing|doesn't|don't)\b", re.IGNORECASE)
MOTION = re.compile(
    r"\b(?:miss|fail|remov|empty|fill|put|tak|drop|add|pick|jump|fall|fold|unfold|turn|get|hit|pull|climb|follow|lead|"
    r"ignor|shun|deny|grant|silent|speak|talk|fast|danc|sing|dry|pour|clos|drill|fre|debon|dirty|clean|stop|walk|bounc|"
    r"strik|peel|slic|set|running (?:away|down|up|behind)|rising|going)\w*",
    re.IGNORECASE,
)
WITH = re.compile(r"\bwith (?=(?:an?|his|her|their) )", re.IGNORECASE)
PEOPLE = "man|woman|person|boy|girl|child|people|men|women"
SOMEBODY = re.compile(rf"^(?:A|The|Two|Three) (?:\w+ )?(?:{PEOPLE}) (?:is|are)\b")


def form(query: str, hard_negative: str) -> str:
    """The way in which a contradiction differs from its query."""
    for name, words in (("sick_nobody", OTHER_NEGATIONS), ("sick_rules", LIKE_RULES)):
        if bool(words.search(query)) != bool(words.search(hard_negative)):
            return name
    return "sick_motion" if MOTION.search(query) or MOTION.search(hard_negative) else "sick_seen"


def content(text: str) -> str:
    """The stems of a text's content words."""
    return stems(query_pairs.FUNCTION_WORD.sub("", f"{text.strip(' .')} "))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for pair in query_pairs.read(options.data / "sts" / "sick"):
        if pair.hard_negative:
            pairs[form(pair.query, pair.other)].append((pair.query, pair.other))
    sick = {text for pair in query_pairs.read(options.data / "sts" / "sick") for text in (pair.query, pair.other)}
    images = json.loads((options.data / "flickr8k" / "dataset_flickr8k.json").read_text())["images"]
    for caption in (text["raw"] for image in images if image["split"] == "val" for text in image["sentences"]):
        without, nobody = WITH.sub("without ", caption, count=1), SOMEBODY.sub("Nobody is", caption)
        for name, other in (("without", without), ("nobody", nobody)):
            if other != caption:
                pairs[name].append((caption, other))
    trained = {content(text["raw"]) for image in images if image["split"] == "train" for text in image["sentences"]}
    print(f"{sum(content(text) in trained for text in sick)} of SICK's {len(sick):,} texts are training captions")
    options.output.mkdir(parents=True, exist_ok=True)
    for name, rows in pairs.items():
        lines = [json.dumps({"query": query, "hard_negative": other}) + "\n" for query, other in rows]
        (options.output / f"{name}.jsonl").write_text("".join(lines))
        print(f"{name}: {len(rows)} pairs, such as {rows[len(rows) // 2]}")


if __name__ == "__main__":
    main()
