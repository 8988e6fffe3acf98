"""The file engine: formats, look-ups, and what it says about files that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.captions.clean import clean
from paraclip_core.config import FileEngineOptions, ParaphraseOptions
from paraclip_core.errors import InputError
from paraclip_core.paraphrase.engines import Engine, Prompt, SamplingOptions
from paraclip_core.paraphrase.paraphraser import make_engine
from paraclip_core.paraphrase.parse import parse_answer

ROWS = [
    {"caption": "A red dog.", "paraphrase_1": "a dog in red", "paraphrase_2": "a puppy in red"},
    {"caption": "two {cats}", "paraphrase_1": "a pair of cats", "paraphrase_2": "a couple of kittens"},
    {"caption": "no second", "paraphrase_1": "only one", "paraphrase_2": None},
    {"caption": "A red dog!", "paraphrase_1": "one dog that is red", "paraphrase_2": "a red hound"},
    {"caption": "A RED dog", "paraphrase_1": "a dog in red", "paraphrase_2": "ignored: the first counts"},
]


def write(folder: Path, kind: str) -> Path:
    path = folder / f"mine.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    else:
        blank = "," if kind == "csv" else "\t"
        lines = [blank.join(ROWS[0]), *(blank.join(value or "" for value in row.values()) for row in ROWS)]
        path.write_text("\n".join(lines) + "\n")
    return path


def engine_of(path: Path) -> Engine:
    return make_engine(ParaphraseOptions(engine="file", file=FileEngineOptions(path=str(path))))


def ask(engine: Engine, step: int, text: str) -> tuple[str, ...]:
    prompt = Prompt((("user", f"whatever {text}"),), text, step, 0)
    return engine.generate([prompt], SamplingOptions())[0].texts


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_formats(kind: str, tmp_path: Path) -> None:
    engine = engine_of(write(tmp_path, kind))
    assert ask(engine, 1, "a red DOG") == ("a dog in red", "one dog that is red")
    assert ask(engine, 2, "A dog in red.") == ("a puppy in red",)
    assert ask(engine, 1, "two {cats}") == ("a pair of cats",)
    assert ask(engine, 2, "only one") == ()
    assert ask(engine, 1, "unknown") == ()
    assert engine.model.startswith("file:")


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_file_may_be_of_windows_or_gzipped_and_lack_paraphrases_in_its_first_row(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    if kind == "jsonl":
        path.write_text('{"caption": "alone"}\n' + path.read_text())
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    zipped = tmp_path / f"mine.{kind}.gz"
    zipped.write_bytes(packed)
    for each in (path, zipped):
        assert ask(engine_of(each), 1, "a red DOG") == ("a dog in red", "one dog that is red")
    zipped.write_bytes(packed[:-12])
    with pytest.raises(InputError, match=rf"paraphrase\.file\.path.*mine\.{kind}\.gz"):
        ask(engine_of(zipped), 1, "a red dog")


def test_a_text_of_many_rows_has_as_many_rewrites_as_may_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"caption": "a dog", "paraphrase_1": f"{n} dogs"}) + "\n" for n in range(40)))
    most = ParaphraseOptions.model_json_schema()["properties"]["keep"]["maximum"]
    assert ask(engine_of(path), 1, "a dog") == tuple(f"{n} dogs" for n in range(most))


def test_texts_are_found_as_ingest_and_the_answers_parser_clean_them(tmp_path: Path) -> None:
    rows = [
        ("The dog’s ball &amp; a “red” kite", "1. the ball of a dog\nand a kite", "a toy"),
        ("Ein Ｃafe\u0301 im Café", "Caption: a café", "one café inside another"),
        # Words that differ in their vowel signs are different.
        ("लड़का दौड़ रहा है", "a boy", "a lad"),
        ("लड़की दौड़ रही है", "a girl", "a lass"),
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(ROWS[0], row, strict=True))) for row in [*rows, ("🐶", "no", "no")]))
    engine = engine_of(path)
    for caption, first, second in rows:
        assert ask(engine, 1, clean(caption)) == (" ".join(first.split()),)
        assert ask(engine, 2, parse_answer(" ".join(first.split()))) == (second,)
    assert ask(engine, 1, "🐶") == ()


def test_the_model_id_follows_content_and_not_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    other = tmp_path / "other.jsonl"
    other.write_bytes(path.read_bytes())
    assert engine_of(path).model == engine_of(other).model
    other.write_bytes(path.read_bytes() + b"\n")
    assert engine_of(path).model != engine_of(other).model


SIBLINGS = [("1.jpg", "a dog"), ("2.jpg", "alone"), ("1.jpg", "A dog!"), ("1.jpg", "a puppy"), ("1.jpg", "a hound")]
SIBLINGS += [("3.jpg", "a cat"), ("3.jpg", "a kitten")]
COCO = {
    "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2, 3)],
    "annotations": [
        {"id": row, "image_id": int(image[0]), "caption": text} for row, (image, text) in enumerate(SIBLINGS)
    ],
}
KARPATHY = {
    "images": [
        {"filename": name, "sentences": [{"raw": text} for image, text in SIBLINGS if image == name]}
        for name in ("1.jpg", "2.jpg", "3.jpg")
    ]
}


@pytest.mark.parametrize("name", ["s.csv", "s.tsv", "s.jsonl", "s.parquet", "coco.json", "karpathy.json"])
def test_captions_alone_reword_each_other(name: str, tmp_path: Path) -> None:
    path, rows = tmp_path / name, [{"image": image, "caption": text} for image, text in SIBLINGS]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix in (".csv", ".tsv"):
        blank = "," if path.suffix == ".csv" else "\t"
        path.write_text("\n".join(blank.join(row) for row in [("image", "caption"), *SIBLINGS]))
    else:
        document = KARPATHY if path.stem == "karpathy" else COCO
        lines = map(json.dumps, rows if path.suffix == ".jsonl" else [document])
        path.write_text("\n".join(lines))
    if path.suffix == ".csv":
        # Rows that ingest would reject are passed over.
        path.write_text(path.read_text() + "\n1.jpg,\n,an image without a name\n")
    engine = engine_of(path)
    circle = [ask(engine, 1, text)[0] for text in ("a dog", "a puppy", "a hound")]
    assert circle == ["a puppy", "a hound", "A dog!"]
    assert ask(engine, 2, "a puppy") == ("a hound",) and ask(engine, 2, "A dog!") == ("a puppy",)
    assert ask(engine, 1, "alone") == ()
    assert ask(engine, 1, "a cat") == ask(engine, 2, "a kitten") == ("a kitten",), "of two the other one, twice"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"x,y\n1,2\n"),
        ("a.csv", b"caption,paraphrase_1,paraphrase_2\n\xff\xfe,b,c\n"),
        ("a.jsonl", b"{broken\n"),
        ("a.jsonl", b"1\n"),
        ("a.jsonl", b'{"caption": "a", "paraphrase_1": ["b"]}\n'),
        ("a.json", b'{"annotations": []}'),
        ("a.json", b'[{"caption": "a", "image": "1", "paraphrase_1": "b", "paraphrase_2": "c"}]'),
        ("a.parquet", b"PAR1 broken"),
        ("a.txt", b"x"),
        ("nowhere.csv", None),
    ],
)
def test_bad_files_are_named(name: str, content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"^paraphrase\.file\.path") as caught:
        ask(engine_of(path), 1, "a")
    assert str(path) in str(caught.value)


def test_several_paraphrases_in_a_list_are_named(tmp_path: Path) -> None:
    rows = pa.table({"caption": ["a"], "paraphrase_1": [["b", "c"]], "paraphrase_2": [["d"]]})
    pq.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"^paraphrase\.file\.path: .*a\.parquet: .*a row for each paraphrase"):
        ask(engine_of(tmp_path / "a.parquet"), 1, "a")


@pytest.mark.parametrize("separator", [",", "\t"])
def test_rows_with_other_fields_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separator: str
) -> None:
    rows = ["caption,paraphrase_1,paraphrase_2", "a,b,c", "a dog, running,a hound,a canine", "d,e"]
    path = tmp_path / ("a.csv" if separator == "," else "a.tsv")
    path.write_text("\n".join(rows).replace(",", separator))
    engine = engine_of(path)
    assert [ask(engine, 1, text) for text in ("a", "a dog", "d")] == [("b",), (), ()]
    (message,) = caplog.messages
    assert f"2 rows of {path}" in message and "4 fields, expected 3" in message
