"""README's figure: of 100 searches, how many find their photograph among the first ten.

    python benchmarks/recall_figure.py --base NAME SMALL LARGE [--base NAME SMALL LARGE] -o docs/recall.svg

SMALL and LARGE are the `summary.json` of two runs on the same base, with paraphrases by a 1.5 B model and by a large
one, and with the rewordings of `val` as the benchmark `odd`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from record import arguments

BENCHMARK = "odd"
QUERIES = {
    "caption": "caption_text_to_image_recall@10",
    "paraphrase": "paraphrased_query_text_to_image_recall@10@paraphrase",
    "short query": "paraphrased_query_text_to_image_recall@10@query",
}
MODELS = {
    "before": ("#52606d", 5),
    "tuned, a 1.5 B model paraphrased": ("#7cc0b8", 5),
    "tuned, a large model paraphrased": ("#0f766e", 6),
}
WIDTH, LEFT, RIGHT = 860, 290, 830
TOP, STEP, GAP = 66, 30, 24


def text(x: float, y: float, words: str, color: str = "#1f2933", size: int = 13, anchor: str = "start") -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{color}" font-size="{size}" text-anchor="{anchor}">{words}</text>'


def recalls(runs: Sequence[dict], metric: str) -> list[float]:
    """The base's recall, and that of each run's tuned model."""
    return [
        runs[0]["models"]["base"][BENCHMARK][metric],
        *(run["models"]["tuned"][BENCHMARK][metric] for run in runs),
    ]


def drawn(bases: Sequence[tuple[str, list[list[float]]]], low: int, high: int, bottom: int) -> Iterator[str]:
    """The lines of the figure from `low` to `high` percent."""

    def at(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (RIGHT - LEFT)

    for tick in range(low, high + 1, 5):
        yield f'<path d="M{at(tick):.1f} 40V{bottom}" stroke="#e4e7eb"/>'
        yield text(at(tick), bottom + 17, str(tick), "#52606d", 12, "middle")
    axis = "searches that find their photograph in the top 10, percent"
    yield text((LEFT + RIGHT) / 2, bottom + 38, axis, "#52606d", 12, "middle")
    x = 16.0
    for label, (color, radius) in MODELS.items():
        yield f'<circle cx="{x}" cy="20" r="{radius}" fill="{color}"/>'
        yield text(x + 12, 24, label)
        x += 46 + 7 * len(label)
    y = TOP
    for name, rows in bases:
        yield text(16, y + 4, name, size=15)
        for query, values in zip(QUERIES, rows, strict=True):
            yield text(LEFT - 16, y + 4, query, "#52606d", 13, "end")
            yield f'<path d="M{at(min(values)):.1f} {y}H{at(max(values)):.1f}" stroke="#9aa5b1" stroke-width="2"/>'
            for value, (color, radius) in zip(values, MODELS.values(), strict=True):
                yield f'<circle cx="{at(value):.1f}" cy="{y}" r="{radius}" fill="{color}"/>'
            yield text(at(max(values)) + 14, y + 4, " → ".join(f"{value:.1f}" for value in values), "#0f766e")
            y += STEP
        y += GAP


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--base", nargs=3, action="append", metavar=("NAME", "SMALL", "LARGE"), required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    bases = []
    for name, *paths in options.base:
        runs = [json.loads(Path(path).read_text()) for path in paths]
        bases.append((name, [recalls(runs, metric) for metric in QUERIES.values()]))
    values = [value for _, rows in bases for row in rows for value in row]
    low, high = int(5 * (min(values) // 5)), int(5 * (max(values) // 5 + 2))
    height = TOP + len(bases) * (len(QUERIES) * STEP + GAP) - GAP
    size = f'viewBox="0 0 {WIDTH} {height + 52}" font-family="sans-serif"'
    title = "Searches that find their photograph in the top 10, before and after tuning, in two bases"
    body = "\n".join(drawn(bases, low, high, height))
    options.output.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">\n'
        f'<rect width="{WIDTH}" height="{height + 52}" rx="10" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


if __name__ == "__main__":
    main()
