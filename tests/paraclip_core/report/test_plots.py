"""Charts: well-formed SVG with stable bytes, unique ids and the page's colours."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

from paraclip_core.report.data import Training
from paraclip_core.report.plots import THEME, Line, alpha_plot, line_chart, loss_plot, validation_plot

SWEEP = {
    "alphas": [{"alpha": a, "text_to_image_recall@10": 54 - a, "ao@10": 29 + a} for a in (0.0, 0.5, 1.0)],
    "chosen": 0.5,
    "rule": "best",
}
LOG = Training(
    "finetune",
    [
        {"step": 1, "loss": 3.0, "losses": {"image~paraphrase_2": 1.0, "caption~paraphrase_1": 2.0}},
        {"step": 2, "loss": 2.0, "losses": {"image~paraphrase_2": 0.5, "caption~paraphrase_1": 1.5}},
        {"step": 2, "validation": {"ao@10": 30.0}},
    ],
)


def texts(svg: str) -> list[str]:
    return ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_equal_arguments_give_equal_bytes_and_no_date() -> None:
    assert alpha_plot(SWEEP) == alpha_plot(SWEEP)
    assert "date" not in str(alpha_plot(SWEEP)).lower()


def test_colours_are_the_page_s_and_no_style_reaches_out() -> None:
    svg = str(alpha_plot(SWEEP))
    assert not any(colour in svg for colour in THEME)
    assert "var(--accent)" in svg
    assert "<style" not in svg
    assert "font-family" not in svg


def test_charts_of_other_names_share_no_id() -> None:
    first, second = (
        set(re.findall(r'id="([^"]+)"', line_chart(n, [Line("a", [1, 2], [3, 4], True)], "x", "y"))) for n in "ab"
    )
    assert first
    assert not first & second


def test_a_name_cannot_leave_its_attribute() -> None:
    ET.fromstring(line_chart('"><script>', [Line("<b>&", [1, 2], [3, 4]), Line("c", [1, 2], [3, 4])], "x", "y"))


def test_the_sum_and_each_loss_are_drawn() -> None:
    assert {"sum", "image~paraphrase 2", "caption~paraphrase 1"} <= set(texts(str(loss_plot(LOG))))


def test_the_sweep_shows_changes_against_the_base_and_ao_first() -> None:
    shown = texts(str(alpha_plot(SWEEP)))
    assert shown.index("AO@10") < shown.index("text→image recall@10")
    assert "change, points" in shown


def test_what_was_not_logged_is_not_drawn() -> None:
    assert loss_plot(Training("x", [])) is None
    assert validation_plot(Training("x", LOG.lines[:2])) is None
    assert "AO@10, %" in texts(str(validation_plot(LOG)))
    assert alpha_plot({"alphas": []}) is None


def test_long_logs_are_thinned_to_what_a_screen_shows() -> None:
    steps = list(range(20_000))
    svg = line_chart("long", [Line("loss", steps, [float(s % 7) for s in steps])], "step", "loss")
    assert len(svg) < 40_000


def test_steps_are_whole_numbers() -> None:
    for steps in ([1], [1, 2, 3, 4, 5], [10, 20, 400]):
        svg = line_chart("steps", [Line("loss", steps, [float(step) for step in steps])], "step", "")
        shown = texts(svg)
        ticks = shown[: shown.index("step")]
        assert ticks and all(tick.isdecimal() for tick in ticks), ticks
    assert "0.4" in texts(line_chart("shares", [Line("x", [0, 0.5, 1], [1, 2, 3])], "α", ""))


def test_a_single_step_is_a_point_for_each_loss() -> None:
    svg = str(loss_plot(Training("finetune", LOG.lines[:1])))
    uses = [element for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}use")]
    drawn = {use.get("style") for use in uses if "stroke" in str(use.get("style"))}
    assert len(drawn) >= 3 and len(re.findall("<use ", str(loss_plot(LOG)))) < len(uses)
