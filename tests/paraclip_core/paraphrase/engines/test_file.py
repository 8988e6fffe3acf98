"""The file engine: formats, look-ups, and what it says about files that are wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paraclip_core.captions.clean import clean
from paraclip_core.config import FileEngineOptions, ParaphraseOptions, SamplingOptions
from paraclip_core.errors import ConfigError, InputError
from paraclip_core.paraphrase.engines import make_engine
from paraclip_core.paraphrase.engines.base import Prompt
from paraclip_core.paraphrase.engines.file import FileEngine
from paraclip_core.paraphrase.parse import parse_answer

ROWS = [
    {"caption": "A red dog.", "paraphrase_1": "a dog in red", "paraphrase_2": "a puppy in red"},
    {"caption": "two {cats}", "paraphrase_1": "a pair of cats", "paraphrase_2": "a couple of kittens"},
    {"caption": "no second", "paraphrase_1": "only one", "paraphrase_2": None},
    {"caption": "A red dog!", "paraphrase_1": "ignored: the first counts", "paraphrase_2": "ignored"},
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


def ask(engine: FileEngine, step: int, text: str) -> tuple[str, ...]:
    prompt = Prompt((("user", f"whatever {text}"),), text, step, 0)
    return engine.generate([prompt], SamplingOptions())[0].texts


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_formats(kind: str, tmp_path: Path) -> None:
    engine = FileEngine(write(tmp_path, kind))
    assert ask(engine, 1, "a red DOG") == ("a dog in red",)
    assert ask(engine, 2, "A dog in red.") == ("a puppy in red",)
    assert ask(engine, 1, "two {cats}") == ("a pair of cats",)
    assert ask(engine, 2, "only one") == ()
    assert ask(engine, 1, "unknown") == ()
    assert engine.model.startswith("file:")


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "tsv"])
def test_columns_match_whatever_their_case_blanks_and_underscores(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"caption": "Caption", "paraphrase_1": "Paraphrase 1", "paraphrase_2": "PARAPHRASE-2"}
    monkeypatch.setattr(f"{__name__}.ROWS", [{names[name]: value for name, value in row.items()} for row in ROWS])
    engine = FileEngine(write(tmp_path, kind))
    assert ask(engine, 1, "a red DOG") == ("a dog in red",)
    assert ask(engine, 2, "A dog in red.") == ("a puppy in red",)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_file_may_be_gzipped(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"mine.{kind}.gz"
    packed = gzip.compress(write(tmp_path, kind).read_bytes())
    path.write_bytes(packed)
    assert ask(FileEngine(path), 2, "A dog in red.") == ("a puppy in red",)
    path.write_bytes(packed[:-12])
    with pytest.raises(InputError, match=rf"cannot read .*mine\.{kind}\.gz"):
        ask(FileEngine(path), 1, "a red dog")


def test_a_gzipped_karpathy_file_and_lines_that_never_end(tmp_path: Path) -> None:
    images = {"images": [{"filename": "1.jpg", "sentences": [{"raw": "a dog"}, {"raw": "a hound"}]}]}
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(images).encode()))
    assert ask(FileEngine(tmp_path / "a.json.gz"), 1, "a dog") == ("a hound",)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(17 << 20), 1))
    with pytest.raises(InputError, match=r"line 1 .* more than 16 MiB"):
        ask(FileEngine(tmp_path / "a.jsonl.gz"), 1, "a dog")


def test_a_line_may_leave_out_what_it_has_not(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"caption": "a cat"}\n{"caption": "a dog", "paraphrase_1": "one dog", "paraphrase_2": "a pup"}\n')
    assert ask(FileEngine(path), 1, "a cat") == () and ask(FileEngine(path), 1, "a dog") == ("one dog",)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv"])
def test_a_byte_order_mark_and_windows_line_ends(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path, kind)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert ask(FileEngine(path), 1, "a red DOG") == ("a dog in red",)


def test_texts_are_found_as_ingest_and_the_answers_parser_clean_them(tmp_path: Path) -> None:
    rows = [
        ("The dog’s ball &amp; a “red” kite", "1. the ball of a dog\nand a kite", "a toy"),
        ("Ein Ｃafe\u0301 im Café", "Caption: a café", "one café inside another"),
    ]
    names = ("caption", "paraphrase_1", "paraphrase_2")
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    engine = FileEngine(path)
    for caption, first, second in rows:
        assert ask(engine, 1, clean(caption)) == (" ".join(first.split()),)
        assert ask(engine, 2, parse_answer(" ".join(first.split()))) == (second,)


def test_words_that_differ_in_their_vowel_signs_are_different(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [("लड़का दौड़ रहा है", "a boy"), ("लड़की दौड़ रही है", "a girl"), ("🐶", "no words at all")]
    path.write_text("\n".join(json.dumps({"caption": c, "paraphrase_1": p, "paraphrase_2": p}) for c, p in rows))
    engine = FileEngine(path)
    assert [ask(engine, 1, clean(caption)) for caption, _ in rows] == [("a boy",), ("a girl",), ()]


def test_the_model_id_follows_content_and_columns_and_not_the_name(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    other = tmp_path / "other.jsonl"
    other.write_bytes(path.read_bytes())
    assert FileEngine(path).model == FileEngine(other).model
    assert FileEngine(path).model != FileEngine(path, FileEngineOptions(paraphrase_2="paraphrase_1")).model
    other.write_bytes(path.read_bytes() + b"\n")
    assert FileEngine(path).model != FileEngine(other).model


def test_karpathy_takes_the_next_two_captions_of_the_image(data_root: Path) -> None:
    path = data_root / "flickr8k" / "dataset_flickr8k.json"
    content = json.loads(path.read_bytes())
    engine = FileEngine(path)
    texts = [sentence["raw"] for sentence in content["images"][0]["sentences"]]
    first = ask(engine, 1, texts[4])
    assert first == (" ".join(texts[0].split()),)
    assert ask(engine, 2, first[0]) == (" ".join(texts[1].split()),)


def test_an_image_with_one_caption_has_no_paraphrase(tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    path.write_text(json.dumps({"images": [{"filename": "1.jpg", "sentences": [{"raw": "alone"}, {"raw": "Alone."}]}]}))
    assert ask(FileEngine(path), 1, "alone") == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "x,y\n1,2\n", "has no column 'caption'; it has x, y"),
        ("a.jsonl", '{"caption": "a"}\n', "has no column 'paraphrase_1'"),
        ("a.jsonl", f'{json.dumps(ROWS[2])}\n{{"text": "a"}}\n', r"line 2 has no column 'caption'; it has text \(name"),
        ("a.jsonl", '\n{"caption": "a", "paraphrase_1": "b"}\n', r"a\.jsonl has no column 'paraphrase_2'; it has cap"),
        ("a.jsonl", "{broken\n", "line 1 is not JSON"),
        ("a.jsonl", "1\n", "line 1 is not a JSON object"),
        ("a.json", '{"annotations": []}', "not in Karpathy format"),
        ("a.json", "{broken", "not valid JSON"),
        ("a.json", "[" * 100_000, "nested too deeply|not valid JSON"),
        ("a.parquet", "PAR1 broken", "cannot read"),
        ("a.txt", "x", "is none of .parquet"),
        ("a.csv", b"caption,paraphrase_1,paraphrase_2\n\xff\xfe,b,c\n", r"line 2 \(caption is not UTF-8"),
        ("a.csv", 'caption,paraphrase_1,paraphrase_2\na,b,c\n"a,b,c\nd,e,f\n', "begins at line 3"),
        (
            "a.jsonl",
            b'{"caption": "a", "paraphrase_1": "b", "paraphrase_2": "c"}\n"\xff"\n',
            "line 2 is not a JSON obj",
        ),
        ("a.jsonl", "[" * 100_000, "nested too deeply|not valid JSON"),
        ("a.csv", "", "has no column 'caption'; it has none"),
    ],
)
def test_bad_files_are_named(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        ask(FileEngine(path), 1, "a")
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    options = ParaphraseOptions(engine="file", file=FileEngineOptions(path="nowhere.csv"))
    with pytest.raises(InputError, match=r"nowhere\.csv"):
        _ = make_engine(options, tmp_path).model


@pytest.mark.parametrize("engine", ["file", "transformers"])
def test_an_engine_without_its_option_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match=f"paraphrase.engine={engine} needs"):
        make_engine(ParaphraseOptions.model_validate({"engine": engine}))


@pytest.mark.parametrize("separator", [",", "\t"])
def test_rows_with_more_or_fewer_fields_than_the_header_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, separator: str
) -> None:
    rows = ["caption,paraphrase_1,paraphrase_2", "a,b,c", "", "a dog, running,a hound,a canine", " ", "d,e", "x,y,z,"]
    path = tmp_path / ("a.csv" if separator == "," else "a.tsv")
    path.write_text("\n".join(rows[:3]).replace(",", separator))
    assert FileEngine(path).rejects() == [] and not caplog.messages
    path.write_text("\n".join(rows).replace(",", separator))
    engine = FileEngine(path)
    assert [(reject.row, reject.reason, reject.detail) for reject in engine.rejects()] == [
        (4, "missing_field", "4 fields, expected 3; is a separator not quoted?"),
        (6, "missing_field", "2 fields, expected 3"),
        (7, "missing_field", "4 fields, expected 3; is a separator not quoted?"),
    ]
    assert engine.rejects()[0].caption == "a dog,  running, a hound, a canine"
    assert [ask(engine, 1, text) for text in ("a", "a dog", "d", "x")] == [("b",), (), (), ()]
    (message,) = caplog.messages
    assert f"3 of 4 rows of {path} cannot be used and are left out, the first is line 4 (4 fields" in message


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_values_that_are_no_texts_are_left_out_and_told(kind: str, tmp_path: Path) -> None:
    names = ("caption", "paraphrase_1", "paraphrase_2")
    good = ("a dog", "a hound", None)
    path = tmp_path / f"a.{kind}"

    def write(*rows: tuple[object, ...]) -> FileEngine:
        table = [dict(zip(names, row, strict=True)) for row in rows]
        if kind == "parquet":
            pq.write_table(pa.Table.from_pylist(table), path)
        else:
            path.write_text("\n".join(map(json.dumps, table)))
        return FileEngine(path)

    engine, first = write(good, (None, "b", "c"), (" ", "b", "c")), 1 if kind == "jsonl" else 0
    assert [(reject.row, reject.reason) for reject in engine.rejects()] == [(first + 1, "empty"), (first + 2, "empty")]
    assert ask(engine, 1, "a dog") == ("a hound",)
    engine = write(("a dog", ["b"], "c"), ("a cat", ["b"], "c"))
    with pytest.raises(InputError, match=rf"2 of 2 rows of .* {first} \(paraphrase_1 is of type list, expected text\)"):
        engine.rejects()
