"""Chinese captions from plan to report: nothing that cannot be judged is paid for, nothing is lost."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import paraclip
from paraclip.storage.parquet import read_table
from paraclip.tasks.plan import plan_run
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import InputError
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer, reply, words_of
from tests.kit.small_runs import made
from tests.kit.tiny_encoder import LETTERS, tiny_encoder

SUBJECTS = {
    "一只棕色的狗": "棕毛小犬", "一位老妇人": "年迈的女士", "一名年轻厨师": "掌勺的青年", "一只黑色的猫": "漆黑的小猫",
    "一个小女孩": "年幼的孩子",
}  # fmt: skip
"""Subjects, and other words for them."""
PLACES = [f"{what}{where}" for where, what in product(
    ("前面", "旁边", "后面", "附近"), ("车站", "港口", "河流", "花园", "市场"))]  # fmt: skip
SKIES = ("雨中", "阳光下")
FORMS = ("{sky}{where}有{who}", "{who}出现在{sky}的{where}", "{where}能看到{other},正在{sky}")
"""A caption with its paraphrased queries."""
HELD_OUT = 0.2


def captions() -> list[tuple[str, ...]]:
    """200 captions with two paraphrased queries each."""
    return [
        tuple(form.format(who=who, other=other, where=where, sky=sky) for form in FORMS)
        for (who, other), where, sky in product(SUBJECTS.items(), PLACES, SKIES)
    ]


@pytest.fixture
def settings_of(tmp_path: Path, openai_server: OpenAIServer) -> Any:
    """Settings of a run over the captions, two an image, that asks the server in their language."""
    (tmp_path / "pics").mkdir()
    for number in range(100):
        Image.new("RGB", (32, 32), (number * 53 % 256, number * 101 % 256, number * 7 % 256)).save(
            tmp_path / "pics" / f"{number}.png"
        )

    def make(**filters: Any) -> Settings:
        texts = captions()
        with (tmp_path / "captions.csv").open("w", newline="", encoding="utf-8") as file:
            rows = [(f"{number // 2}.png", caption) for number, (caption, _, _) in enumerate(texts)]
            csv.writer(file).writerows([("image", "caption"), *rows])
        answers = {text: other for _, *pair in texts for text, other in [pair]} | {row[0]: row[1] for row in texts}
        # Every twentieth caption comes back as it is, and of the one after it a letter.
        answers |= {row[0]: row[0] for row in texts[::20]} | {row[0]: row[0][-1] for row in texts[1::20]}
        openai_server.answer = lambda asked: reply(answers[words_of(asked).partition(": ")[2]])
        return parse_settings(
            {
                "data": {
                    "root": str(tmp_path),
                    "sources": [{"path": "captions.csv", "images": "pics"}],
                    "held_out": HELD_OUT,
                },
                "paraphrase": {
                    "engine": "openai",
                    "model": "smol",
                    "openai": {"base_url": openai_server.url, "api_key_env": "NO_KEY"},
                    "sampling": {"n": 1},
                    "prompt_1": "改写: {}",
                    "prompt_2": "换一种说法: {}",
                    "filters": filters,
                },
                "model": {"base": "built-in", "text_width": 64, "text_layers": 1, "embed_dim": 32},
                "built_in_base": {"epochs": 2, "batch_size": 32},
                "finetune": {"recipe": "published", "learning_rate": 1e-3, "epochs": 1, "batch_size": 32},
                "evaluate": {"benchmarks": [{"name": "captions", "kind": "paraphrased_retrieval"}]},
                "run": {"root": str(tmp_path / "root"), "threads": 1},
            }
        )

    return make


@pytest.mark.slow
def test_captions_in_their_own_language_from_plan_to_report(
    settings_of: Any, openai_server: OpenAIServer, tmp_path: Path
) -> None:
    not_english = r"about 1\d\d of 1\d\d training captions are not in English.*filters\.encoder"
    for refuses in (lambda settings: plan_run(Run(settings)), paraclip.run):
        with pytest.raises(InputError, match=not_english):
            refuses(settings_of())
    assert not openai_server.asked
    texts = captions()
    letters = "".join(sorted({letter for row in texts for letter in "".join(row).lower()} - {*LETTERS, " "}))
    settings = settings_of(encoder=str(tiny_encoder(tmp_path / "encoder", LETTERS + letters)))
    plan = plan_run(Run(settings))
    assert not [note for note in plan.notes if "English" in note]
    ingest = made("ingest", settings)
    ingested = read_table(ingest.path / "captions").to_pylist()
    assert len(ingested) == 200 and ingest.manifest.metrics["rejected"] == {}
    train = [row["caption"] for row in ingested if row["split"] == "train"]
    steps = [stage.requests for stage in plan.stages if stage.stage == "paraphrase_1"]
    assert steps == [len(train)]
    first, second = (made(name, settings) for name in ("paraphrase_1", "paraphrase_2"))
    bad = [{row[0] for row in texts[n::20]} & {*train} for n in (0, 1)]
    rejects = read_table(first.path / "rejects").to_pylist()
    assert {row["input"]: row["reason"] for row in rejects} == {
        **dict.fromkeys(bad[0], "echo"), **dict.fromkeys(bad[1], "length_ratio")
    }  # fmt: skip
    rows = read_table(second.path / "paraphrases").to_pylist()
    expected = {row[0]: row for row in texts if row[0] in {*train} - bad[0] - bad[1]}
    assert {row["caption"]: (row["caption"], row["paraphrase_1"], row["paraphrase_2"]) for row in rows} == expected
    assert len(openai_server.asked) == len(train) + len(expected)
    names = list(Run(settings).stages)
    report = [made(name, settings) for name in names[names.index("paraphrase_2") + 1 :]][-1]
    page = (report.path / "report.html").read_text("utf-8")
    assert "AO@10" in page and any(row[0] in page for row in texts)
