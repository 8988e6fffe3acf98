"""`paraclip init`: what it finds in a folder, and that `plan` takes what it writes."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paraclip_core.settings import load_settings

HEADER = (" File_Name ", "CAPTION", "Remark", "LICENSE")


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (shade, 90, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def captions(images: int, each: int = 2) -> list[tuple[str, str]]:
    return [(f"2024/IMG {n}.PNG", f"picture {n} in words of kind {m}") for n in range(images) for m in range(each)]


def photos(folder: Path, images: int = 60) -> None:
    (folder / "2024").mkdir(parents=True)
    for n in range(images):
        (folder / f"2024/IMG {n}.PNG").write_bytes(picture(n))


def table(path: Path, rows: list[tuple[str, str]], header: tuple[str, ...] = HEADER) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows([*row, "…", ""][: len(header)] for row in rows)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a camera and a spreadsheet leave it; no language model's server answers."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "my data" / "Photos")
    table(tmp_path / "my data" / "My export.csv", [*captions(60), ("2024/gone.png", "a picture that is gone")])
    return tmp_path / "my data"


@pytest.fixture
def facts(cli: Any) -> Callable[..., dict[str, Any]]:
    return lambda *arguments: cli.json(["init", *arguments])


def test_plan_takes_what_it_writes(data: Path, cli: Any) -> None:
    out = cli(["init", data.name, "--name", "holiday"]).out
    assert "accepted: 121\n" in out and "images_missing:\n- 2024/gone.png\n" in out
    assert "20% of the images are held out as val" in out
    settings = load_settings("paraclip.yaml")
    assert (settings.name, settings.evaluate.split) == ("holiday", "val")
    assert [benchmark.kind for benchmark in settings.evaluate.benchmarks] == ["paraphrased_retrieval", "retrieval"]
    planned = cli.json(["plan", "-c", "paraclip.yaml"])
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    images = stages["evaluate"]["rows"] // 2
    assert stages["ingest"]["rows"] == 121 and images > 5
    assert planned["notes"][0].startswith("1 of 61 images that were looked up")
    assert (
        f"validation: paraphrased_queries has {images} pairs of {images} images; expect AO@10 ±" in planned["notes"][1]
    )
    assert "so they are too few to tell" in planned["notes"][1] and planned["notes"][3].startswith("recipe, ")


@pytest.mark.parametrize(("images", "batch"), [(60, 16), (2000, 512)])
def test_a_base_of_few_captions_takes_enough_steps(data: Path, images: int, batch: int, facts: Any) -> None:
    """Five steps leave it near chance, and everything measured on it is noise."""
    table(data / "My export.csv", captions(images))
    rows = facts(data.name)["captions"]["train"]
    settings = load_settings("paraclip.yaml")
    assert (settings.built_in_base.batch_size, settings.finetune.batch_size) == (batch, min(batch, 256))
    assert settings.built_in_base.epochs * rows / batch == pytest.approx(300, rel=0.05)
    facts(data.name, "--base", "ViT-B-32:laion2b_s34b_b79k", "--force")
    published = load_settings("paraclip.yaml")
    assert published.built_in_base == settings.built_in_base.__class__()
    # Learning rates are tried, by the kind of the base.
    assert settings.finetune.learning_rate is published.finetune.learning_rate is None


@pytest.mark.parametrize("images", [1, 2, 5])
def test_a_base_of_hardly_any_captions_stays_within_the_options(data: Path, images: int, facts: Any) -> None:
    """A batch has no caption twice, so a passage is one step."""
    table(data / "My export.csv", captions(images, each=1))
    facts(data.name)
    assert load_settings("paraclip.yaml").built_in_base.epochs == 300


def test_a_wrong_name_blames_no_file(data: Path, cli: Any) -> None:
    error = cli(["init", data.name, "--name", "a/b"], code=2).err
    assert error.startswith("error: the configuration for my data: name: 'a/b' cannot name a run")
    assert not Path("paraclip.yaml").exists()


def test_missing_images_and_captions_without_one_are_those_of_plan(data: Path, cli: Any, facts: Any) -> None:
    photos(data / "Photos" / "more", 250)
    rows = [(f"more/{image}", text) for image, text in captions(250)]
    (data / "Photos" / "more" / "2024" / "IMG 230.PNG").unlink()
    table(data / "My export.csv", [*rows, *(("", f"nobody drew number {n}") for n in range(20))])
    report = facts(data.name)
    assert report["images_missing"] == ["more/2024/IMG 230.PNG"]
    rejected = report["rows"]["rejected"]["no_image"]
    bare = f"{20 - rejected} of {report['captions']['val']} captions of split val have no image"
    planned = cli.json(["plan", "-c", "paraclip.yaml"])["notes"]
    assert 0 < rejected < 20
    for notes in (report["notes"], planned):
        assert any(note.startswith(bare) for note in notes)
    assert any("1 of 250 images" in note and "'more/2024/IMG 230.PNG'" in note for note in planned)


def test_nothing_is_written_over(data: Path, cli: Any) -> None:
    Path("paraclip.yaml").write_text("name: kept\n")
    assert "paraclip.yaml exists already; give --force" in cli(["init", data.name], code=2).err
    assert Path("paraclip.yaml").read_text() == "name: kept\n"
    cli(["init", data.name, "--force"])
    assert load_settings("paraclip.yaml").name == "mine"
    first = Path("paraclip.yaml").read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=") and Path(first.partition("=")[2]).is_file()


def test_a_split_for_each_file(data: Path, facts: Any) -> None:
    (data / "My export.csv").unlink()
    for name, first, last in (("train", 0, 40), ("valid", 40, 60)):
        table(data / f"{name}.tsv", [])
        lines = ["caption\timage", *(f"{text}\t{image}" for image, text in captions(60)[2 * first : 2 * last])]
        (data / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    report = facts(data.name)
    assert [(source["path"], source["split"]) for source in report["sources"]] == [
        ("train.tsv", "train"),
        ("valid.tsv", "val"),
    ]
    assert report["images"] == {"train": 40, "val": 20}
    assert load_settings("paraclip.yaml").data.held_out == 0
    (data / "captions").mkdir()
    for name in ("train.tsv", "valid.tsv"):
        (data / name).rename(data / "captions" / name)
    table(data / "captions of last year.csv", captions(3))
    report = facts(data.name, "--captions", "captions", "--force")
    assert report["images"] == {"train": 40, "val": 20}


def test_a_table_called_text(data: Path, facts: Any) -> None:
    """The captions of Flickr8k as they are passed around: ``captions.txt`` with a header, beside a folder of images."""
    (data / "My export.csv").unlink()
    lines = ["image,caption", *(f"{image},{text}" for image, text in captions(60))]
    (data / "captions.txt").write_text("\n".join(lines) + "\n")
    assert facts(data.name)["rows"]["accepted"] == 120


def test_columns_and_files_of_other_names(data: Path, facts: Any) -> None:
    table(data / "My export.csv", captions(60), ("Bild", "Beschreibung"))
    report = facts(data.name, "--caption-column", "beschreibung", "--image-column", "Bild")
    assert report["rows"]["accepted"] == 120
    (data / "My export.csv").unlink()
    lines = [json.dumps({"text": text, "file name": Path(image).name}) for image, text in captions(60)]
    (data / "captions.jsonl").write_text("\n".join(lines) + "\n")
    with tarfile.open(data / "pictures.tar", "w") as tar:
        tar.add(data / "Photos", "Photos")
    report = facts(data.name, "--images", "pictures.tar", "--force")
    (source,) = report["sources"]
    assert (source["path"], source["images"]) == ("captions.jsonl", "pictures.tar")


def test_parquet_with_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, facts: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for part in range(2):
        rows = [{"image": {"bytes": picture(50 * part + n)}, "caption": f"picture {part} {n}"} for n in range(30)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data-{part}.parquet")
    report = facts()
    assert [source["path"] for source in report["sources"]] == ["."] and report["rows"]["accepted"] == 60
    assert "paraphrased_query" in Path("paraclip.yaml").read_text(), "one caption an image gives no pairs"
    assert any("held-out captions are paraphrased, too" in note for note in report["notes"])
    assert not any("`hold`" in note for note in report["notes"])
    planned = cli.json(["plan", "-c", "paraclip.yaml"])
    (queries,) = [stage for stage in planned["stages"] if stage["stage"] == "queries"]
    images = report["images"]["val"]
    assert queries["rows"] == images and queries["requests"] > images
    assert any(f"held_out_queries has at most {images} pairs of {images} images" in note for note in planned["notes"])


@pytest.mark.parametrize(("words", "limit"), [(15, None), (16, 16), (40, 40), (78, None)])
def test_captions_that_are_longer_than_usual_are_kept(data: Path, words: int, limit: int | None, facts: Any) -> None:
    rows = captions(60)
    # One image has nothing but long captions, and another one has a short one, too.
    rows[:3] = [(image, " ".join([f"word{n}"] * words)) for n, (image, _) in enumerate(rows[:3])]
    table(data / "My export.csv", rows)
    report, settings = facts(data.name), load_settings("paraclip.yaml")
    notes = [note for note in report["notes"] if "more than 15 words" in note]
    assert settings.data.max_words == (limit or 15)
    assert report["rows"]["accepted"] == (117 if words > 77 else 120)
    assert len(notes) == (limit is not None)
    if notes:
        assert notes[0].startswith("captions of more than 15 words: 3, images with no other caption: 1; max_words")


def test_a_linked_folder_of_images_is_seen(data: Path, cli: Any, facts: Any) -> None:
    (data / "Photos").rename(data.parent / "Elsewhere")
    (data / "Photos").symlink_to(data.parent / "Elsewhere", target_is_directory=True)
    # What names no image is left out.
    (data / "notes.csv").write_text("caption,rating\na first picture,3\n")
    report = facts(data.name)
    (source,) = report["sources"]
    assert (source["path"], source["images"]) == ("My export.csv", "Photos")
    assert report["files_that_name_no_image"] == ["notes.csv"] and report["images_missing"] == ["2024/gone.png"]
    cli(["plan", "-c", "paraclip.yaml"])


@pytest.mark.parametrize("twice", [False, True], ids=["shared images", "repeated rows"])
def test_validation_rows_that_share_images_with_training_are_reported_and_refused(
    data: Path, cli: Any, facts: Any, twice: bool
) -> None:
    rows = [[*row, "train" if twice or n % 4 == 0 else "val"] for n, row in enumerate(captions(60))]
    rows += [[*row[:2], "val"] for row in rows[:40]] if twice else []
    with (data / "My export.csv").open("w", newline="") as file:
        long = ["2024/IMG 1.PNG", " ".join(["word"] * 78), "train"]
        csv.writer(file).writerows([["image", "caption", "split"], *rows, long])
    notes = facts(data.name)["notes"]
    assert "rows that are left out: too_many_words 1 (data.max_words)" in notes
    shared = "20 of 20" if twice else "30 of 60"
    notice = f"{shared} validation images are trained on, too, by their ids: `run` refuses that"
    assert any(note.startswith(notice) for note in notes)
    assert "give all rows of an image one split" in " ".join(cli(["plan", "-c", "paraclip.yaml"], code=1).err.split())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "no captions in empty: empty is not a file"),
        ("columns", "its first line has 2 fields: 'Bild', 'Titel der Datei'. Name the one with the caption"),
        ("semicolons", "its first line has 2 fields: 'Bild', 'Titel'. Name the one with the caption"),
        ("quotes", "no header that names a caption (caption, TEXT, text, title, captions, query) and its first"),
        ("a quote", "not valid CSV in the record that begins at line 3"),
        ("no column", "a.csv (columns 'caption', 'rating') name no image, so nothing can be trained on"),
        ("vectors", "captions.txt name no image, so nothing can be trained on"),
        ("elsewhere", "images that were looked up is below my data/2024; the first is '2024/IMG 0.PNG'"),
        ("two", "2 files hold captions: My export.csv, another.csv; choose one, or a folder, with --captions"),
        ("no images", "none of the 60 images that were looked up is below no images; the first is '2024/IMG 0.PNG'"),
        ("no names", "name no image, so nothing can be trained on; add a column `image`"),
        ("twice", "the images are in Photos and in Thumbnails; choose one with --images"),
    ],
)
def test_what_is_missing_is_said(case: str, message: str, data: Path, cli: Any) -> None:
    other = data.parent / case
    folder, options = other, []
    if case in ("two", "twice", "elsewhere"):
        folder = data
        if case == "elsewhere":
            (data / "2024").mkdir()
            options = ["--images", "2024"]
        elif case == "two":
            table(data / "another.csv", captions(3))
        else:
            photos(data / "Thumbnails")
    else:
        other.mkdir()
    if case == "columns":
        (other / "a.csv").write_text("Bild,Titel der Datei\n1.png,ein Hund am Strand\n")
    if case == "semicolons":
        (other / "c.csv").write_text("Bild;Titel\n1.png;ein Hund am Strand\n")
    if case == "quotes":
        (other / "c.csv").write_text('Bild;Titel\n1.png;ein Hund\n"2; b.png";"ein ""Hund"" am Strand"\n')
    if case == "a quote":
        (other / "c.csv").write_text('caption;image\nein Hund;1.png\n"ein Hund" am Strand;2.png\n')
    if case == "no column":
        (other / "a.csv").write_text("caption,rating\na first picture,3\n")
    if case == "vectors":
        (other / "img_emb").mkdir()
        np.save(other / "img_emb" / "img_emb_0.npy", np.zeros((4, 8), np.float32))
        (other / "captions.txt").write_text("a dog on a beach\n" * 4)
        options = ["--images", "img_emb"]
    if case == "no images":
        table(other / "a.csv", captions(60))
    if case == "no names":
        (other / "a.txt").write_text("a dog on a beach\n")
    assert message in cli(["init", folder.name, *options], code=1).err
    assert not Path("paraclip.yaml").exists()


def test_the_server_that_answers_becomes_the_engine(
    data: Path, facts: Any, openai_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "no language model's server answered at http://127.0.0.1:9/v1"
    assert any(note.startswith(missing) for note in facts(data.name)["notes"])
    assert load_settings("paraclip.yaml").paraphrase.engine == "openvino"
    monkeypatch.setenv("OPENAI_BASE_URL", openai_server.url)
    # One that offers several does not say which is meant.
    some = f"{openai_server.url} offers {len(openai_server.models)} models ("
    assert any(note.startswith(some) for note in facts(data.name, "--force")["notes"])
    assert load_settings("paraclip.yaml").paraphrase.engine == "openvino"
    assert f"# openai: {{base_url: {json.dumps(openai_server.url)}}}" in Path("paraclip.yaml").read_text()
    openai_server.models = [{"id": "org/model: 7B"}]
    assert not any("server" in note for note in facts(data.name, "--force")["notes"])
    options = load_settings("paraclip.yaml").paraphrase
    assert (options.engine, options.model, options.openai.base_url) == ("openai", "org/model: 7B", openai_server.url)
    assert (options.prompts, options.keep, options.sampling.n) == ("paper", 2, 2)
    openai_server.refuses = 401
    refused = f"{openai_server.url} refuses the key (401): set OPENAI_API_KEY"
    assert any(note.startswith(refused) for note in facts(data.name, "--force")["notes"])
    assert load_settings("paraclip.yaml").paraphrase.engine == "openvino"


def test_paraphrases_beside_the_captions_are_taken(data: Path, facts: Any) -> None:
    rows = [
        {"caption": text, "paraphrase_1": f"{text} or so", "paraphrase_2": f"so {text}"} for _, text in captions(60)
    ]
    (data / "ready.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = facts(data.name)
    assert found["paraphrases"] == "ready.jsonl" and found["files_that_name_no_image"] == []
    options = load_settings("paraclip.yaml").paraphrase
    assert (options.engine, options.file.path) == ("file", "ready.jsonl")
