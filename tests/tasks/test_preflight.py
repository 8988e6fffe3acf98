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


OWN = {"name": "own", "kind": "paraphrased_retrieval", "path": "pairs.jsonl"}
NO_IMAGE_OF_SPLIT = "BenchmarkError: benchmark 'captions': no ingested caption of split 'val' has an image; set"
ALIKE = "give all rows of an image one split"
SINGLE = [row for row in rows("val", 20, first=50) if row[1].endswith("east")]
TRAIN, VAL = list(rows("train", 50)), list(rows("val", 10, first=50))
SAME_IDS = [(TRAIN[n][0], caption, split) for n, (_, caption, split) in enumerate(VAL)]
SAME_CAPTIONS = [(image, TRAIN[n][1], split) for n, (image, _, split) in enumerate(VAL)]
CASES: dict[str, tuple[list[Row], dict[str, Any], list[str]]] = {
    "all that it needs": ([*TRAIN, *VAL], {}, []),
    "validated on what is trained on": (TRAIN, {"split": "train"}, []),
    "nothing to evaluate": (TRAIN, {"benchmarks": []}, []),
    "pairs of other images": (TRAIN, {"benchmarks": [OWN | {"path": "others.jsonl"}]}, ["'own': none of its 1 images"]),
    "pairs of its images": (TRAIN, {"benchmarks": [OWN]}, []),
    "no caption of the split": ([*TRAIN, *rows("test", 20, first=50)], {}, [NO_IMAGE_OF_SPLIT, "look in ingest's log"]),
    "the split is named": ([*TRAIN, *rows("test", 20, first=50)], {"split": "test"}, []),
    "no caption to train on": (VAL, {}, ["captions is of split train (val 20)", "columns.split", "`split: train`"]),
    "too few images": ([*TRAIN, *rows("val", 7, first=50)], {}, ["its pool has 7 images; expected at least 10"]),
    "single captions": ([*TRAIN, *SINGLE], {}, ["no image of split 'val' has two captions"]),
    "single captions suffice": ([*TRAIN, *SINGLE], {"benchmarks": [{"name": "r", "kind": "retrieval"}]}, []),
    "ids in both": ([*TRAIN, *SAME_IDS], {}, ["10 of 10 validation images are trained on, too, by their ids", ALIKE]),
    "captions in both": ([*TRAIN, *SAME_CAPTIONS], {}, ["20 of 20 validation captions are training captions", ALIKE]),
    "contents in both": ([*TRAIN, *VAL], {"copied": 10}, ["10 of 10 validation images have the contents of a", ALIKE]),
    "one id in both": ([*TRAIN, SAME_IDS[0], *rows("val", 30, first=60)], {}, ["1 of 31 validation images"]),
    "one caption in both": ([*TRAIN, SAME_CAPTIONS[0], *rows("val", 30, first=60)], {}, ["1 of 61 validation capt"]),
    "a missing image": (TRAIN, {"split": "train", "gone": 3}, ["1 of 50 images that were looked up in pics are"]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_captions_lack(tmp_path: Path, settings_of: Make, case: str) -> None:
    table, options, parts = CASES[case]
    write(tmp_path / "captions.csv", table)
    for name, image in (("pairs", "{}.jpg"), ("others", "x{}.jpg")):
        pair = {"caption": "a dog", "paraphrased_query": "a hound"}
        lines = [json.dumps(pair | {"image": image.format(number)}) for number in range(10 if name == "pairs" else 1)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    for number in range(options.get("copied", 0)):
        (tmp_path / "pics" / f"{50 + number}.jpg").write_bytes(b"%d" % number)
    if "gone" in options:
        (tmp_path / "pics" / f"{options['gone']}.jpg").unlink()
    message = told(settings_of(**{name: value for name, value in options.items() if name in ("split", "benchmarks")}))
    assert all(part in message for part in parts) and bool(message) == bool(parts), message


@pytest.mark.parametrize(
    ("train", "val", "parts"),
    [
        (None, None, ["none of the 100 training captions has an image (train.csv 100)", "data.sources[].images"]),
        ("pics", None, [NO_IMAGE_OF_SPLIT, "data.sources[].images"]),
    ],
)
def test_a_source_without_images(
    tmp_path: Path, settings_of: Make, train: str | None, val: str | None, parts: list[str]
) -> None:
    sources = []
    for split, images, table in (("train", train, TRAIN), ("val", val, VAL)):
        write(tmp_path / f"{split}.csv", table)
        sources.append({"path": f"{split}.csv", **({"images": images} if images else {})})
    message = told(settings_of(*sources))
    assert all(part in message for part in parts), message


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


def test_nothing_is_looked_at_where_nothing_is_left_to_pay(tmp_path: Path, settings_of: Make) -> None:
    write(tmp_path / "captions.csv", VAL)
    run = Run(settings_of(), open_store(settings_of().run.root))
    for name in ("paraphrase_1", "paraphrase_2", "queries"):
        with pytest.raises(InputError, match="of split train"):
            check_before_paying(run)
        with run.store.writing(name, run.node(name).fingerprint):
            run.store.commit(run.node(name).draft, {}, 0.0)
        # Paraphrases that are there were checked before they were made.
        if name == "paraphrase_2":
            assert run.stages["queries"].check_before(run) == []
    assert check_before_paying(run) == []


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
    # Of Chinese, fifteen words are more than CLIP reads.
    foreign.append(("5.jpg", "阿尔卑斯山脚下戴着墨镜的厨师在咖啡馆旁边切蔬菜喂养黑猫骑着", "train"))
    assert told_of(10, filters=encoder, **own).startswith(
        "about 1 of 26 training captions have more than 77 tokens of CLIP's own"
    )
    # What would judge is looked for before anything is judged.
    (tmp_path / "nothing").mkdir()
    assert "nothing' cannot be loaded" in told_of(10, filters={"encoder": str(tmp_path / "nothing")})


def test_captions_that_another_machine_ingested_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(tiny_run(tmp_path, {"engine": "tests.kit.scripted_engine:Well", "model": "m"}))
    run = settings.run.model_copy(update={"root": f"memory://{tmp_path.name}-captions/root"})
    settings = settings.model_copy(update={"run": run})
    seen = []
    for machine in ("one", "two"):
        monkeypatch.setenv(LOCAL_VARIABLE, str(tmp_path / machine))
        store = open_store(settings.run.root)
        if machine == "one":
            run_stage("ingest", Run(settings, store, HERE))
        seen.append(check_before_paying(Run(settings, store), planned=True))
    assert seen[0] == seen[1] != []
