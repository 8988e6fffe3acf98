"""A run whose captions lack what its later stages need ends before it asks for a paraphrase; a plan tells it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai_server import OpenAIServer  # pyright: ignore[reportMissingImports]

from paraclip.flows.cli import run_cli
from paraclip_core.errors import InputError
from paraclip_core.settings import load_settings

Capture = pytest.CaptureFixture[str]
EXPECTED = "searches the images of split val (evaluate.split), but none of the 24 captions is of it (train 24)"


@pytest.fixture
def config(tmp_path: Path, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of twelve images with two captions each, all for training; the server must not hear of it."""
    monkeypatch.delenv("PARACLIP_ROOT", raising=False)
    rows = [f"{image}.jpg,a dog with number {image} runs {way}" for image in range(12) for way in ("east", "west")]
    (tmp_path / "captions.csv").write_text("\n".join(["Image,Caption", *rows]) + "\n")
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "0.jpg").touch()
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
        run: {{root: {tmp_path / "root"}}}
        data: {{root: {tmp_path}, sources: [{{path: captions.csv, images: pics}}]}}
        paraphrase: {{engine: openai, model: smol, openai: {{base_url: {openai_server.url}}}}}
        evaluate: {{benchmarks: [{{name: captions, kind: paraphrased_retrieval}}]}}
        """
    )
    yield path
    assert not openai_server.asked


def test_a_plan_tells_what_captions_lack(config: Path, capsys: Capture) -> None:
    assert run_cli(["plan", "-c", str(config)]) == 1
    assert EXPECTED in " ".join(capsys.readouterr().err.split())
    assert run_cli(["plan", "-c", str(config), "--set", "data.sources.0.images=null"]) == 1
    assert "none of the 24 training captions has an image (captions.csv 24)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_ends_before_it_asks(config: Path) -> None:
    from prefect_server import prefect_server  # pyright: ignore[reportMissingImports]

    from paraclip.flows.pipeline import pipeline

    with prefect_server(), pytest.raises(InputError) as error:
        pipeline(settings=load_settings(config, []))
    assert EXPECTED in str(error.value)
    made = sorted(path.name for path in (config.parent / "root" / "artifacts").iterdir())
    assert made == ["ingest"]
