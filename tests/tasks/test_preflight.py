"""What a run's captions lack is told before a language model is asked for anything: after ingest, and by a plan."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paraclip.storage.roots import LOCAL_VARIABLE, open_store
from paraclip.tasks.preflight import check_before_paying
from paraclip.tasks.run.execute import run_stage
from paraclip.tasks.run.run import Run
from paraclip_core.config import Settings
from paraclip_core.errors import InputError, ParaclipError
from paraclip_core.settings import parse_settings
from tests.kit.openai_server import OpenAIServer
from tests.kit.small_runs import HERE, made
from tests.kit.tiny_encoder import tiny_encoder
from tests.kit.tiny_run import tiny_run

Row = tuple[str, str, str]
"""Image, caption and split."""
Make = Callable[..., Settings]


def rows(split: str, images: int, first: int = 0) -> Iterator[Row]:
    """Two captions of each image."""
    for image in range(first, first + images):
        for way in ("east", "west"):
            yield f"{image}.jpg", f"a dog with number {image} runs {way}", split


def write(path: Path, table: Iterable[Row], header: tuple[str, ...] = ("image", "caption", "split")) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])


@pytest.fixture
def settings_of(tmp_path: Path, openai_server: OpenAIServer) -> Iterator[Make]:
    """Settings of a run that would ask the server, which must not hear of anything."""

    def make(*sources: dict[str, Any], benchmarks: Iterable[dict[str, Any]] | None = None, **evaluate: Any) -> Settings:
        chosen = [{"name": "captions", "kind": "paraphrased_retrieval"}] if benchmarks is None else list(benchmarks)
        return parse_settings(
            {
                "data": {"root": str(tmp_path), "sources": sources or [{"path": "captions.csv", "images": "pics"}]},
                "paraphrase": {"engine": "openai", "model": "smol", "openai": {"base_url": openai_server.url}},
                "evaluate": {"benchmarks": chosen, **evaluate},
                "run": {"root": str(tmp_path / "root")},
            }
        )

    (tmp_path / "pics").mkdir()
    for number in range(100):
        (tmp_path / "pics" / f"{number}.jpg").write_bytes(b"%d" % number)
    yield make
    assert not openai_server.paths


def told(settings: Settings) -> str:
    """What the user hears, which is the same before ingest has run and after it."""
    store, messages = open_store(settings.run.root), []
    for ingested in (False, True):
        if ingested:
            made("ingest", settings)
        try:
            messages.append("\n".join(check_before_paying(Run(settings, store))))
        except ParaclipError as error:
            messages.append(f"{type(error).__name__}: {error}")
    assert messages[0] == messages[1]
    return messages[0]


def test_a_run_that_has_all_it_needs(tmp_path: Path, settings_of: Make) -> None:
    write(tmp_path / "captions.csv", [*rows("train", 50), *rows("val", 10, first=50)])
    assert told(settings_of()) == ""
    # But pairs of other images.
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps({"image": "x.jpg", "caption": "a dog", "paraphrased_query": "a hound"})
    )
    own = {"name": "own", "kind": "paraphrased_retrieval", "path": "pairs.jsonl"}
    assert "benchmark 'own': none of 1 pairs" in told(settings_of(benchmarks=[own]))
    write(tmp_path / "captions.csv", rows("train", 50))
    assert told(settings_of(split="train")) == ""
    assert told(settings_of(benchmarks=[])) == ""
    # An image that is missing is told before its captions are paid for.
    (tmp_path / "pics" / "3.jpg").unlink()
    missing = "1 of 50 images that were looked up in pics are missing, the first is '3.jpg'"
    assert told(settings_of(split="train")).startswith(missing)


def test_no_caption_of_the_split_that_is_evaluated(tmp_path: Path, settings_of: Make) -> None:
    write(tmp_path / "captions.csv", [*rows("train", 50), *rows("test", 20, first=50)])
    message = told(settings_of())
    assert message.startswith("InputError: benchmark 'captions' searches the images of split val (evaluate.split)")
    assert "none of the 140 captions is of it (train 100, test 40)" in message
    assert "data.sources[].columns.split" in message and "`split: val`" in message
    assert told(settings_of(split="test")) == ""
    assert told(settings_of({"path": "captions.csv", "images": "pics", "split": "val"})).startswith("InputError")
    pair = {"image": "3.jpg", "caption": "a dog", "paraphrased_query": "a hound"}
    lines = [json.dumps(pair | {"image": f"{image}.jpg"}) for image in range(10)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    own = {"name": "own", "kind": "paraphrased_retrieval", "path": "pairs.jsonl"}
    assert told(settings_of(benchmarks=[own])) == ""


def test_too_few_images_of_the_split(tmp_path: Path, settings_of: Make) -> None:
    write(tmp_path / "captions.csv", [*rows("train", 50), *rows("val", 7, first=50)])
    message = told(settings_of())
    assert message.startswith("BenchmarkError: benchmark 'captions': its pool has 7 images; expected at least 10: use")
    single = [row for row in rows("val", 20, first=50) if row[1].endswith("east")]
    write(tmp_path / "captions.csv", [*rows("train", 50), *single])
    assert "no image of split 'val' has two captions" in told(settings_of())
    assert told(settings_of(benchmarks=[{"name": "r", "kind": "retrieval"}])) == ""


@pytest.mark.parametrize(
    ("train", "val", "parts"),
    [
        ("absent", "pics", ["captions is of split train (val 40)", "data.sources[].columns.split", "`split: train`"]),
        (None, None, ["none of the 100 training captions has an image (train.csv 100)", "data.sources[].images"]),
        ("pics", None, ["none of its 40 captions has an image (val.csv 40); name their tar or folder in"]),
    ],
)
def test_a_split_without_captions_or_images(
    tmp_path: Path, settings_of: Make, train: str | None, val: str | None, parts: list[str]
) -> None:
    sources = []
    for split, images, table in (("train", train, rows("train", 50)), ("val", val, rows("val", 20, first=50))):
        if images != "absent":
            write(tmp_path / f"{split}.csv", table)
            sources.append({"path": f"{split}.csv", **({"images": images} if images else {})})
    message = told(settings_of(*sources))
    assert message.startswith("InputError: ") and all(part in message for part in parts), message


@pytest.mark.parametrize("way", ["ids", "contents", "captions"])
def test_validation_that_is_trained_on(tmp_path: Path, settings_of: Make, way: str) -> None:
    train, val = list(rows("train", 50)), list(rows("val", 10, first=50))
    if way == "contents":
        for number in range(10):
            (tmp_path / "pics" / f"{50 + number}.jpg").write_bytes(b"%d" % number)
    if way == "ids":
        val = [(train[n][0], caption, split) for n, (_, caption, split) in enumerate(val)]
    if way == "captions":
        val = [(image, train[n][1], split) for n, (image, _, split) in enumerate(val)]
    write(tmp_path / "captions.csv", [*train, *val])
    message = told(settings_of())
    assert message.startswith("InputError: ") and "give all rows of an image one split" in message
    expected = {
        "ids": "10 of 10 validation images are trained on, too, by their ids",
        "contents": "10 of 10 validation images have the contents of a training image",
        "captions": "20 of 20 validation captions are training captions, too",
    }
    assert expected[way] in message
    write(tmp_path / "captions.csv", [*train, *val[:1], *rows("val", 30, first=60)])
    assert re.fullmatch(r"1 of \d+ validation (images|captions) .*", told(settings_of()))


@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_images_that_are_not_where_they_should_be(tmp_path: Path, settings_of: Make, kind: str) -> None:
    named = (*rows("train", 50), *rows("val", 10, first=50))
    write(tmp_path / "captions.csv", [(image.removesuffix(".jpg"), caption, split) for image, caption, split in named])
    (tmp_path / "pics" / "3.jpg").rename(tmp_path / "pics" / "300.jpg")
    images = "pics"
    if kind == "tar":
        with tarfile.open(tmp_path / "pics.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("300.jpg"), io.BytesIO())
        images = "pics.tar"
    message = told(settings_of({"path": "captions.csv", "images": images}, split="train"))
    assert re.match(
        rf"InputError: .*/{images} has none of the 60 images that were looked up; the first is '0', ", message
    )
    assert "as captions.csv names it. Correct data.sources[].images, or name the column" in message


def test_nothing_is_looked_at_where_nothing_is_left_to_pay(
    tmp_path: Path, settings_of: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "captions.csv", rows("val", 20))
    settings = settings_of()
    store = open_store(settings.run.root)
    nodes = Run(settings, store).nodes
    for name in ("paraphrase_1", "paraphrase_2", "queries"):
        with pytest.raises(InputError, match="of split train"):
            check_before_paying(Run(settings, store))
        with store.writing(name, nodes[name].fingerprint) as work:
            (work.out / "made.txt").touch()
            store.commit(nodes[name].draft, {}, 0.0)
    monkeypatch.setattr("paraclip.tasks.preflight.count_captions", lambda *_: pytest.fail("captions were counted"))
    assert check_before_paying(Run(settings, store)) == []


def test_queries_are_checked_where_they_are_paid_for_alone(tmp_path: Path, settings_of: Make) -> None:
    write(tmp_path / "captions.csv", rows("val", 20))
    run = Run(settings_of(), open_store(settings_of().run.root))
    stage = run.stages["queries"]
    with pytest.raises(InputError, match="of split train"):
        stage.check_before(run)
    for name in ("paraphrase_1", "paraphrase_2"):
        with run.store.writing(name, run.node(name).fingerprint):
            run.store.commit(run.node(name).draft, {}, 0.0)
    assert stage.check_before(run) == []


def test_scenes_that_are_not_rendered_are_left_to_the_run(tmp_path: Path) -> None:
    scenes = {"images": 60}
    source = {"path": "captions.jsonl", "images": "images.tar"}
    settings = parse_settings({"data": {"scenes": scenes, "sources": [source]}, "run": {"root": str(tmp_path)}})
    store = open_store(settings.run.root)
    assert check_before_paying(Run(settings, store)) == []
    for name in ("scenes", "ingest"):
        made(name, settings)
    assert check_before_paying(Run(settings, store)) == []


def test_captions_that_the_filters_cannot_read(tmp_path: Path, settings_of: Make) -> None:
    others = (
        "Zwei Kinder spielen im Park", "un chien court sur la plage", "собака бежит по пляжу", "一只狗在海滩上奔跑",
        "iki çocuk ve bir köpek",
    )  # fmt: skip
    foreign = [(f"{image}.jpg", text, "train") for image, text in enumerate(others)]

    def told_of(english: int, **paraphrase: Any) -> str:
        write(tmp_path / "captions.csv", [*rows("train", english), *foreign, *rows("val", 12, english)])
        settings = settings_of({"path": "captions.csv", "images": "pics", "format": "csv"})
        options = settings.paraphrase.model_copy(update={k: v for k, v in paraphrase.items() if k != "filters"})
        filters = options.filters.model_copy(update=paraphrase.get("filters", {}))
        changed = settings.model_copy(update={"paraphrase": options.model_copy(update={"filters": filters})})
        return told(changed)

    encoder = {"encoder": str(tiny_encoder(tmp_path / "encoder"))}
    own = {"prompt_1": "Formuliere um: {}", "prompt_2": "Sage anders: {}"}
    refused, noticed = told_of(10), told_of(40)
    assert refused.startswith("InputError: about 5 of 25 training captions are not in English, and the filters")
    assert "reads English alone: their paraphrases would be paid for and rejected" in refused
    assert "paraphrase.filters.encoder to a multilingual one" in refused and "filters.preset=off" in refused
    # A few among many are no reason to stop, and are said.
    assert noticed == refused.replace("InputError: ", "").replace("5 of 25", "5 of 85")
    # They could be judged, and the model would answer in English.
    for filters in (encoder, {"preset": "off"}):
        in_english = told_of(10, filters=filters)
        assert in_english.startswith("about 5 of 25") and "paraphrase.prompt_1 and prompt_2 in the" in in_english
        assert told_of(10, filters=filters, **own).startswith(
            "" if filters is encoder else "paraphrase.filters.preset=off keeps"
        )
    # Word lists read English, whatever the encoder.
    assert "the filters small-model read English alone" in told_of(
        10, filters=encoder | {"preset": "small-model"}, **own
    )
    # Of Chinese, fifteen words are more than CLIP reads.
    foreign.append(("5.jpg", "阿尔卑斯山脚下戴着墨镜的厨师在咖啡馆旁边切蔬菜喂养黑猫骑着", "train"))
    assert told_of(10, filters=encoder, **own).startswith("1 of 26 training captions have 77 tokens of CLIP's own")
    # What would judge is looked for before anything is judged.
    (tmp_path / "nothing").mkdir()
    assert "nothing' cannot be loaded" in told_of(10, filters={"encoder": str(tmp_path / "nothing")})


def test_scenes_that_another_machine_rendered_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(tiny_run(tmp_path, {"engine": "tests.kit.scripted_engine:Well", "model": "m"}))
    run = settings.run.model_copy(update={"root": f"memory://{tmp_path.name}-scenes/root"})
    settings = settings.model_copy(update={"run": run})
    seen = []
    for machine in ("one", "two"):
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / machine))
        store = open_store(settings.run.root)
        if machine == "one":
            for name in ("scenes", "ingest"):
                run_stage(name, Run(settings, store, HERE))
        seen.append(check_before_paying(Run(settings, store), planned=True))
    assert seen[0] == seen[1] != []
