"""`paraclip init`: the configuration that it writes for a folder or an index, and that `plan` takes it."""

from __future__ import annotations

import csv
import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paraclip_core.settings import load_settings

FOLDER, TABLE = "my data", "My export.csv"
PUBLISHED = "--base ViT-B-32:laion2b_s34b_b79k"
Files = Mapping[str, str | bytes | None]


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (32, 24), (shade, 90, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def photos(folder: Path, images: int = 60) -> None:
    (folder / "2024").mkdir(parents=True)
    for n in range(images):
        (folder / f"2024/IMG {n}.PNG").write_bytes(picture(n))


def captions(images: int, each: int = 2) -> list[tuple[str, str]]:
    return [(f"2024/IMG {n}.PNG", f"picture {n} in words of kind {m}") for n in range(images) for m in range(each)]


def table(
    rows: Iterable[Iterable[object]], header: Iterable[str] = (" File_Name ", "CAPTION"), delimiter: str = ","
) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return file.getvalue()


def lay(folder: Path, files: Files) -> None:
    """Write these files; None removes one."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.unlink()
        else:
            path.write_bytes(content.encode("utf-8-sig") if isinstance(content, str) else content)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as a camera and a spreadsheet leave it; no language model's server answers."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / FOLDER / "Photos")
    lay(tmp_path / FOLDER, {TABLE: table([*captions(60), ("2024/gone.png", "a picture that is gone")])})
    return tmp_path / FOLDER


def long_captions(words: int) -> str:
    """Three captions of so many words among 120."""
    rows = captions(60)
    return table([(image, " ".join([f"word{n}"] * words)) for n, (image, _) in enumerate(rows[:3])] + rows[3:])


def by_split(folder: str = "") -> Files:
    """A table for each split."""
    parts = {"train.tsv": captions(60)[:80], "valid.tsv": captions(60)[80:]}
    return {TABLE: None, **{f"{folder}{name}": table(rows, ("image", "caption"), "\t") for name, rows in parts.items()}}


def as_lines(rows: Iterable[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


READY = [{"caption": text, "paraphrase_1": f"{text} or so", "paraphrase_2": f"so {text}"} for _, text in captions(60)]
NAMED = [{"text": text, "file name": Path(image).name} for image, text in captions(60)]
SPLITS = {"data.held_out": 0, "data.sources[1].split": "val"}
FEW = ("too few images are held out to evaluate, so the verdict will be `hold`", "# evaluate:  # needs")
LONG = "captions of more than 15 words: 3; max_words in the file keeps them"


class Case(NamedTuple):
    """What differs from the fixture's folder, and the configuration that `init` writes."""

    files: Mapping[str, str | bytes | None] = {}
    arguments: str = ""
    settings: Mapping[str, Any] = {}
    sources: tuple[tuple[str, str], ...] = ((TABLE, "Photos"),)
    accepted: int = 120
    says: tuple[str, ...] = ()
    """Parts of the file or of the output."""


CASES = {
    "a spreadsheet": Case(
        settings={"data.held_out": 0.2, "evaluate.split": "val", "built_in_base.batch_size": 16, "data.max_words": 15,
                  "finetune.batch_size": 16, "finetune.validation": 0.2, "finetune.learning_rate": None,
                  "paraphrase.engine": "openvino", "paraphrase.keep": 1, "evaluate.control": True},
        accepted=121,
        says=("20% of the images are held out as val", '      license: "unknown"\n', "  # engine: openai\n",
              "    - {name: paraphrased_queries, kind: paraphrased_retrieval}\n"),
    ),
    "a published base": Case({}, PUBLISHED, {"built_in_base.epochs": 5, "finetune.learning_rate": None}, accepted=121),
    "many captions": Case(
        {TABLE: table(captions(2000))}, accepted=4000,
        settings={"built_in_base.batch_size": 512, "finetune.batch_size": 256, "built_in_base.epochs": 49},
    ),
    # A batch has no caption twice, so a passage is one step.
    **{
        f"{n} captions": Case({TABLE: table(captions(n, 1))}, "", {"built_in_base.epochs": 300}, accepted=n, says=FEW)
        for n in (1, 2, 5)
    },
    "a table for each split": Case(by_split(), "", SPLITS, (("train.tsv", "Photos"), ("valid.tsv", "Photos"))),
    "their folder": Case(
        {**by_split("texts/"), "texts of last year.csv": table(captions(3))}, "--captions texts", SPLITS,
        (("texts/train.tsv", "Photos"), ("texts/valid.tsv", "Photos")),
    ),
    # The captions of Flickr8k as they are passed around.
    "a table called text": Case(
        {TABLE: None, "captions.txt": table(captions(60), ("image", "caption"))}, sources=(("captions.txt", "Photos"),)
    ),
    "columns of other names": Case(
        {TABLE: table(captions(60), ("Bild", "Beschreibung"))}, "--caption-column beschreibung --image-column Bild",
        {"data.sources[0].columns.caption": "beschreibung"},
    ),
    "images in a tar": Case(
        {TABLE: None, "captions.jsonl": as_lines(NAMED)}, "--images pictures.tar",
        sources=(("captions.jsonl", "pictures.tar"),),
    ),
    "what names no image": Case(
        {TABLE: table(captions(60)), "notes.csv": "caption,rating\na first picture,3\n"},
        says=("files_that_name_no_image:\n- notes.csv\n",),
    ),
    "paraphrases": Case(
        {TABLE: table(captions(60)), "ready.jsonl": as_lines(READY)},
        settings={"paraphrase.engine": "file", "paraphrase.file.path": "ready.jsonl"},
        says=("paraphrases: ready.jsonl\nfiles_that_name_no_image: []\n",),
    ),
    "captions of 15 words": Case({TABLE: long_captions(15)}, "", {"data.max_words": 15}),
    "captions of 16 words": Case({TABLE: long_captions(16)}, "", {"data.max_words": 16}, says=(LONG,)),
    "captions of 40 words": Case({TABLE: long_captions(40)}, "", {"data.max_words": 40}, says=(LONG,)),
    "captions of 78 words": Case({TABLE: long_captions(78)}, "", {"data.max_words": 15}, accepted=117),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_folder_becomes_a_configuration(case: Case, data: Path, cli: Any) -> None:
    with tarfile.open(data.parent / "pictures.tar", "w") as tar:
        tar.add(data / "Photos", "Photos")
    if "pictures.tar" in case.arguments:
        (data.parent / "pictures.tar").rename(data / "pictures.tar")
    lay(data, case.files)
    out = " ".join(cli(["init", FOLDER, *case.arguments.split()]).out.split())
    text, settings = Path("paraclip.yaml").read_text(), load_settings("paraclip.yaml")
    assert f"accepted: {case.accepted} " in out
    assert tuple((source.path, source.images) for source in settings.data.sources) == case.sources
    for path, value in case.settings.items():
        node: Any = settings
        for name in re.findall(r"\w+", path):
            node = node[int(name)] if name.isdecimal() else getattr(node, name)
        assert node == value, path
    for part in case.says:
        assert part in text or " ".join(part.split()) in out, part
    assert ("captions of more than" in out) == (LONG in case.says)


@pytest.fixture
def facts(cli: Any) -> Any:
    return lambda *arguments: cli.json(["init", *arguments])


def test_plan_takes_what_it_writes(data: Path, cli: Any, facts: Any) -> None:
    (data / "Photos").rename(data.parent / "Elsewhere")
    (data / "Photos").symlink_to(data.parent / "Elsewhere", target_is_directory=True)
    report = facts(data.name, "--name", "holiday")
    assert report["images_missing"] == ["2024/gone.png"] and load_settings("paraclip.yaml").name == "holiday"
    planned = cli.json(["plan", "-c", "paraclip.yaml"])
    stages = {stage["stage"]: stage for stage in planned["stages"]}
    images = stages["evaluate"]["rows"] // 2
    assert stages["ingest"]["rows"] == 121 and images > 5
    assert planned["notes"][0].startswith("1 of 61 images that were looked up")
    assert (
        f"validation: paraphrased_queries has {images} pairs of {images} images; expect AO@10 ±" in planned["notes"][1]
    )
    assert "so they are too few to tell" in planned["notes"][1] and planned["notes"][3].startswith("recipe, ")


def test_missing_images_and_captions_without_one_are_those_of_plan(data: Path, cli: Any, facts: Any) -> None:
    photos(data / "Photos" / "more", 250)
    rows = [(f"more/{image}", text) for image, text in captions(250)]
    lay(data, {"Photos/more/2024/IMG 230.PNG": None})
    lay(data, {TABLE: table([*rows, *(("", f"nobody drew number {n}") for n in range(20))])})
    report = facts(data.name)
    assert report["images_missing"] == ["more/2024/IMG 230.PNG"]
    rejected = report["rows"]["rejected"]["no_image"]
    bare = f"{20 - rejected} of {report['captions']['val']} captions of split val have no image"
    planned = cli.json(["plan", "-c", "paraclip.yaml"])["notes"]
    assert 0 < rejected < 20
    for notes in (report["notes"], planned):
        assert any(note.startswith(bare) for note in notes)
    assert any("1 of 250 images" in note and "'more/2024/IMG 230.PNG'" in note for note in planned)


def test_parquet_with_its_pictures_has_no_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any, facts: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in range(2):
        rows = [{"image": {"bytes": picture(50 * part + n)}, "caption": f"picture {part} {n}"} for n in range(30)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data-{part}.parquet")
    report = facts()
    assert [source["path"] for source in report["sources"]] == ["."] and report["rows"]["accepted"] == 60
    assert "paraphrased_query" in Path("paraclip.yaml").read_text()
    assert any("held-out captions are paraphrased, too" in note for note in report["notes"])
    assert not any("`hold`" in note for note in report["notes"])
    planned = cli.json(["plan", "-c", "paraclip.yaml"])
    (queries,) = [stage for stage in planned["stages"] if stage["stage"] == "queries"]
    images = report["images"]["val"]
    assert queries["rows"] == images and queries["requests"] > images
    assert any(f"held_out_queries has at most {images} pairs of {images} images" in note for note in planned["notes"])


@pytest.mark.parametrize("twice", [False, True], ids=["shared images", "repeated rows"])
def test_validation_rows_that_share_images_with_training_are_reported_and_refused(
    data: Path, cli: Any, facts: Any, twice: bool
) -> None:
    rows = [[*row, "train" if twice or n % 4 == 0 else "val"] for n, row in enumerate(captions(60))]
    rows += [[*row[:2], "val"] for row in rows[:40]] if twice else []
    rows.append(["2024/IMG 1.PNG", " ".join(["word"] * 78), "train"])
    lay(data, {TABLE: table(rows, ("image", "caption", "split"))})
    notes = facts(data.name)["notes"]
    assert "rows that are left out: too_many_words 1 (data.max_words)" in notes
    shared = "20 of 20" if twice else "30 of 60"
    notice = f"{shared} validation images are trained on, too, by their ids: `run` refuses that"
    assert any(note.startswith(notice) for note in notes)
    assert "give all rows of an image one split" in " ".join(cli(["plan", "-c", "paraclip.yaml"], code=1).err.split())


VECTORS = io.BytesIO()
np.save(VECTORS, np.zeros((4, 8), np.float32))


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({"new/.keep": ""}, "new", "no captions in new: new is not a file"),
        ({"new/a.csv": "Bild,Titel der Datei\n1.png,ein Hund am Strand\n"}, "new",
         "its first line has 2 fields: 'Bild', 'Titel der Datei'. Name the one with the caption"),
        ({"new/a.csv": "caption,rating\na first picture,3\n"}, "new",
         "a.csv (columns 'caption', 'rating') name no image, so nothing can be trained on"),
        ({"new/a.txt": "a dog on a beach\n"}, "new",
         "a.txt name no image, so nothing can be trained on; add a column `image`"),
        ({"new/img_emb/img_emb_0.npy": VECTORS.getvalue(), "new/captions.txt": "a dog on a beach\n" * 4},
         "new --images img_emb", "captions.txt name no image, so nothing can be trained on"),
        ({"new/a.csv": table(captions(60))}, "new",
         "none of the 60 images that were looked up is below new; the first is '2024/IMG 0.PNG'"),
        ({"mine/2024/.keep": ""}, "mine --images 2024",
         "images that were looked up is below mine/2024; the first is '2024/IMG 0.PNG'"),
        ({"mine/another.csv": table(captions(3))}, "mine",
         "2 files hold captions: My export.csv, another.csv; choose one, or a folder, with --captions"),
        ({f"mine/Thumbnails/2024/IMG {n}.PNG": picture(n) for n in range(60)}, "mine",
         "the images are in Photos and in Thumbnails; choose one with --images"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said(files: Files, arguments: str, message: str, data: Path, cli: Any) -> None:
    data.rename("mine")
    lay(data.parent, files)
    assert message in cli(["init", *arguments.split()], code=1).err
    assert not Path("paraclip.yaml").exists()


def test_nothing_is_written_over_and_a_wrong_name_blames_no_file(data: Path, cli: Any) -> None:
    error = cli(["init", data.name, "--name", "a/b"], code=2).err
    assert error.startswith("error: the configuration for my data: name: 'a/b' cannot name a run")
    assert not Path("paraclip.yaml").exists()
    Path("paraclip.yaml").write_text("name: kept\n")
    assert "paraclip.yaml exists already; give --force" in cli(["init", data.name], code=2).err
    assert Path("paraclip.yaml").read_text() == "name: kept\n"
    cli(["init", data.name, "--force"])
    assert load_settings("paraclip.yaml").name == "mine"
    first = Path("paraclip.yaml").read_text().splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=") and Path(first.partition("=")[2]).is_file()


def test_the_server_that_answers_becomes_the_engine(
    data: Path, facts: Any, openai_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, engine = openai_server.url, attrgetter("engine", "model", "openai.base_url", "prompts", "keep", "sampling.n")

    def written(note: str | None) -> tuple[Any, ...]:
        notes = [note for note in facts(data.name, "--force")["notes"] if "server" in note]
        assert len(notes) == (note is not None) and all(line.startswith(str(note)) for line in notes)
        return engine(load_settings("paraclip.yaml").paraphrase)

    embedded = written("no language model's server answered at http://127.0.0.1:9/v1")
    assert embedded[0] == "openvino"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    # One that offers many does not say which is meant; of two, the second writes the held-out queries.
    first, second = openai_server.models
    openai_server.models = [{"id": "org/writer"}, {"id": "org/examiner"}]
    assert written(None)[1] == "org/writer"
    assert load_settings("paraclip.yaml").evaluate.queries == {"model": "org/examiner"}
    openai_server.models = [first, second, {"id": "org/third"}]
    assert written(f"{url} offers {len(openai_server.models)} models (") == embedded
    assert f"# openai: {{base_url: {json.dumps(url)}}}" in Path("paraclip.yaml").read_text()
    openai_server.models = [{"id": "org/model: 7B"}]
    assert written(None) == ("openai", "org/model: 7B", url, "paper", 2, 2)
    openai_server.refuses = 401
    assert written(f"{url} refuses the key (401): set OPENAI_API_KEY") == embedded


LOG = f"{PUBLISHED} --features index.npy --ids ids.txt --queries"
SENTENCE = "a dog that has found a ball under the old car behind the house of its very young owner"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An index and logs; no language model's server answers."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.chdir(tmp_path)
    np.save("index.npy", np.random.default_rng(0).normal(size=(50, 512)).astype(np.float16))
    clicked = [("a red car", 0, 1), ("a red dog", 1, 2), ("a old car", 0, 1), ("a old dog", 1, 2)]
    rows = [*((query, f"photo {n}", count) for query, n, count in clicked), ("jo@example.org", "", 1)]
    logs = {
        "log.csv": table([*rows, *((f"tree {n}", "", "") for n in range(60))], ("query", "image", "count")),
        "long.csv": table([[f"{SENTENCE} number {n}"] for n in range(30)], ["search_term"]),
        "train.csv": table([[f"a tree with {n} birds", "train"] for n in range(30)], ("query", "split")),
    }
    lay(tmp_path, {"ids.txt": b"".join(b"photo %d\n" % n for n in range(50)), **logs})
    return tmp_path


def test_an_index_and_a_log_become_a_configuration(index: Path, facts: Any) -> None:
    report = facts(*LOG.split(), "log.csv")
    settings = load_settings(index / "paraclip.yaml")
    assert settings.data.index is not None and settings.data.index.ids == "ids.txt" and settings.data.min_words == 1
    assert settings.evaluate.control and settings.evaluate.queries == {} and settings.finetune.batch_size == 8
    assert (settings.data.max_words, settings.data.held_out, settings.finetune.validation) == (15, 0.2, 0.2)
    assert "prompts: few-shot" in Path("paraclip.yaml").read_text()
    assert report["queries"] == {"accepted": 64, "rejected": {"personal": 1}}
    for part in (
        "64 different queries of 66 searches",
        "4 of them led to a click",
        "taken on trust",
        "rows that are left out: personal 1",
        "answered at http://127.0.0.1:9/v1: the file",
    ):
        assert any(part in note for note in report["notes"]), part


def test_sentences_are_asked_about_as_captions_are_and_none_is_too_long(index: Path, facts: Any) -> None:
    report = facts(*LOG.split(), "long.csv", "--caption-column", "search_term")
    assert report["queries"] == {"accepted": 30, "rejected": {}}
    settings = load_settings("paraclip.yaml")
    assert "prompts: paper" in Path("paraclip.yaml").read_text() and settings.data.max_words == 21
    assert settings.data.sources[0].columns.caption == "search_term"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (f"{PUBLISHED} --features index.npy", 2, "--queries, a log of queries, belong together"),
        (f"{LOG} log.csv --base built-in", 2, "give --base the model that the index was made with"),
        (f"{LOG} log.csv --base RN50:openai", 1, "512 numbers a row, but RN50:openai embeds into 1024"),
        (f"{LOG} log.csv --images x", 2, "leave out --captions and --images"),
        (f"{LOG} train.csv", 1, "leave the column `split` out of the log, or give some rows this split"),
        (f"{LOG} log.csv --features no.npy", 2, "--features: no.npy does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(index: Path, cli: Any, arguments: str, code: int, message: str) -> None:
    assert message in " ".join(cli(["init", *arguments.split()], code).err.split())
    assert not (index / "paraclip.yaml").exists()
