"""README's figure: agreement on paraphrases and on contradictions, of the base, the control and the tuned model.

    python benchmarks/agreement_figure.py SUMMARY… -o docs/agreement.svg

SUMMARY are the `summary.json` of finished runs that differ in their seed, with a control and SICK's pairs as
benchmarks: `sick`, and of its contradictions `sick_rules` and `sick_seen` (negation_forms.py).
Small dots are runs, large ones their means.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean

from record import arguments

WIDTH, HEIGHT = 860, 326
LEFT, RIGHT, AXIS = 236, 830, 272
ROWS = (
    ("sick", "ao@10", "same meaning", "“a kid on a swing”, “child swinging”", "should agree more"),
    ("sick_rules", "hard_negative_ao@10", "negation", "“a dog is running”, “no dog is running”", "should agree less"),
    ("sick_seen", "hard_negative_ao@10", "another word", "“running indoors”, “running outdoors”", "should agree less"),
)
COLORS = {"base": "#52606d", "control": "#9aa5b1", "tuned": "#0f766e"}
LABELS = {"base": "base", "control": "control: trained without paraphrases", "tuned": "tuned with paraphrases"}
STEP = 22
"""Distance between the lines of one row."""


def text(x: float, y: float, words: str, color: str = "#1f2933", size: int = 13, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def drawn(summaries: Sequence[dict], low: float, high: float) -> Iterator[str]:
    """The lines of the figure from `low` to `high` percent."""

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    for tick in range(int(low), int(high) + 1, 5):
        yield f'<path d="M{at(tick):.1f} 44V{AXIS}" stroke="#e4e7eb"/>'
        yield text(at(tick), AXIS + 17, str(tick), "#52606d", 12, "middle")
    yield text(
        (LEFT + RIGHT) / 2, AXIS + 38, "agreement of the first ten images (AO@10), percent", "#52606d", 12, "middle"
    )
    x = 16.0
    for model, label in LABELS.items():
        yield f'<circle cx="{x}" cy="20" r="6" fill="{COLORS[model]}"/>'
        yield text(x + 12, 24, label)
        x += 42 + 7 * len(label)
    for number, (benchmark, metric, name, example, wish) in enumerate(ROWS):
        y = 72 + number * 76
        yield text(16, y + 4, name, size=15)
        yield text(16, y + 21, example, "#52606d", 11)
        yield text(16, y + 36, wish, "#52606d", 11)
        for line, model in enumerate(LABELS):
            values = [summary["models"][model][benchmark][metric] for summary in summaries]
            mean, height = fmean(values), y - 4 + STEP * line
            yield f'<path d="M{at(min(values)):.1f} {height}H{at(max(values)):.1f}" stroke="{COLORS[model]}"/>'
            yield from (f'<circle cx="{at(v):.1f}" cy="{height}" r="2.5" fill="{COLORS[model]}"/>' for v in values)
            yield f'<circle cx="{at(mean):.1f}" cy="{height}" r="6" fill="{COLORS[model]}"/>'
            right = max(*values, mean)
            yield text(at(right) + 12, height + 4, f"{mean:.1f}", COLORS[model] if model == "tuned" else "#52606d")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("summaries", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    summaries = [json.loads(path.read_text()) for path in options.summaries]
    values = [run["models"][model][name][metric] for run in summaries for model in LABELS for name, metric, *_ in ROWS]
    low, high = 5 * (min(values) // 5), 5 * (max(values) // 5 + 1)
    title = f"Agreement on paraphrases and contradictions before and after tuning, {len(summaries)} seeds"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif"'
    body = "\n".join(drawn(summaries, low, high))
    options.output.write_text(
        f'{head} role="img" aria-label="{title}">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="10" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
