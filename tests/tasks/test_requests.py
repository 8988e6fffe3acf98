"""What steps have left: the plan counts what a run then asks, and looks without asking, judging or keeping anything."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from paraclip.storage.artifacts import Artifact, ArtifactStore, Draft
from paraclip.storage.fingerprint import fingerprint
from paraclip.tasks.requests import steps_left
from paraclip.tasks.run.dag import carry_out
from paraclip.tasks.run.run import Run, Stage
from paraclip.tasks.stages.ingest import INGEST
from paraclip.tasks.stages.paraphrase import PARAPHRASE_1, PARAPHRASE_2
from paraclip_core.config import Settings
from paraclip_core.settings import parse_settings

CARS = [f"the car {n} near a beach is {'slow' if n % 8 in (0, 4, 7) else 'fast'}" for n in range(30)]
INPUT = {"paraphrase_1": "ingest", "paraphrase_2": "paraphrase_1"}


class Bench:
    """A root, and captions that are written for each look at it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(folder / "root")

    def settings(self, captions: Sequence[str], engine: str = "Writer", **changed: Any) -> Settings:
        (self.folder / "captions.txt").write_text("".join(f"{caption}\n" for caption in captions))
        paraphrase = {"engine": f"scripted_engine:{engine}", "gates": {"preset": "off"}}
        data = {"root": str(self.folder), "sources": [{"path": "captions.txt"}]}
        return parse_settings({"data": data, "paraphrase": paraphrase | changed})

    def run(self, stage: Stage, chosen: Settings) -> Artifact:
        inputs = {}
        if stage.name in INPUT:
            inputs = {name: self.run(BEFORE[name], chosen) for name in (INPUT[stage.name],)}
        options = dict(stage.options(Run(chosen, self.store)))
        names = {name: artifact.fingerprint for name, artifact in inputs.items()}
        names |= stage.sources(Run(chosen, self.store))
        name = fingerprint(stage.name, stage.version, options, names)
        draft = Draft(stage.name, name, stage.version, names, options)
        return self.store.find(stage.name, name) or carry_out(stage, draft, Run(chosen, self.store), inputs)

    def generated(self, stage: Stage, chosen: Settings) -> int:
        return self.run(stage, chosen).manifest.metrics["generated"]


BEFORE = {"ingest": INGEST, "paraphrase_1": PARAPHRASE_1}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def files(store: ArtifactStore) -> list[Path]:
    return sorted(path for path in store.root.rglob("*") if path.is_file() and path.suffix not in (".lock", ".duckdb"))


@settings(max_examples=5, phases=(Phase.reuse, Phase.generate))
@given(st.lists(st.sampled_from(CARS), unique=True), st.lists(st.sampled_from(CARS), unique=True))
def test_what_is_counted_is_what_is_asked(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str]
) -> None:
    assume(before != after)
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.run(PARAPHRASE_2, bench.settings([*before, "the car 2 is fast"]))
    chosen = bench.settings([*after, "the car 2 is fast"])
    left = steps_left(Run(chosen, bench.store), {})
    assert left == steps_left(Run(chosen, bench.store), {"ingest": bench.run(INGEST, chosen)})
    first = bench.run(PARAPHRASE_1, chosen)
    assert left[1].missing == len(set(after) - set(before) - {"the car 2 is fast"})
    assert first.manifest.metrics["generated"] == left[1].missing
    assert left[1].rows == first.manifest.metrics["captions"] == len(after) + 1
    # Step 2 of what is missing is not known before.
    then = steps_left(Run(chosen, bench.store), {"paraphrase_1": first})
    assert left[2].missing <= then[2].missing <= left[2].missing + left[1].new_inputs
    assert bench.generated(PARAPHRASE_2, chosen) == then[2].missing
    done = steps_left(Run(chosen, bench.store), {})
    assert [(done[step].missing, done[step].accepted + done[step].rejected) for step in (1, 2)] == [
        (0, len(after) + 1), (0, first.manifest.metrics["kept"])
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"regenerate": ["empty"]}, 11),
        ({"regenerate": ["echo"]}, 0),
        ({"regenerate": ["empty", "empty"]}, 11),
        ({"attempts": 2}, 11),
    ],
)
def test_rows_that_are_to_be_asked_again_are_counted(changed: dict[str, Any], expected: int, bench: Bench) -> None:
    bench.run(PARAPHRASE_1, bench.settings(CARS))
    chosen = bench.settings(CARS, **changed)
    left = steps_left(Run(chosen, bench.store), {})[1]
    # What a second rule of the same rows will ask is not known before.
    generated = bench.generated(PARAPHRASE_1, chosen)
    assert left.missing == expected <= generated <= expected * len(changed.get("regenerate", "1"))
    assert (left.rejected, left.accepted) == (11, 19)
    assert steps_left(Run(chosen, bench.store), {})[1].missing == 0


def test_answers_without_a_verdict_lead_to_requests_as_far_as_they_are_new(bench: Bench) -> None:
    bench.run(PARAPHRASE_2, bench.settings(CARS[:10], engine="Well"))
    # Ten answers are judged anew, and known to step 2; the others are missing.
    other = {"preset": "off", "extra": ["scripted_gates:short"]}
    left = steps_left(Run(bench.settings(CARS[:14], engine="Well", gates=other), bench.store), {})
    assert (left[1].missing, left[1].new_inputs, left[1].accepted, left[2].rows) == (4, 4, 0, 0)
    # With another prompt step 2 knows none of them.
    chosen = bench.settings(CARS[:14], engine="Well", gates=other, prompt_2="Say {}!")
    assert steps_left(Run(chosen, bench.store), {})[1].new_inputs == 14
    assert bench.generated(PARAPHRASE_2, chosen) == 14


def test_a_look_asks_judges_and_keeps_nothing(bench: Bench) -> None:
    chosen = bench.settings(CARS[:10], engine="Refusing")
    left = steps_left(Run(chosen, bench.store), {})
    assert left[1].missing == 10 and not bench.store.root.exists()
    bench.run(PARAPHRASE_1, bench.settings(CARS[:10], engine="Well"))
    before = files(bench.store)
    looked = bench.settings(CARS, engine="Refusing", gates={"preset": "off", "extra": ["scripted_gates:short"]})
    left = steps_left(Run(looked, bench.store), {})
    assert (left[1].rows, left[1].missing, left[1].accepted) == (30, 20, 0)
    assert files(bench.store) == before


def test_tokens_grow_with_prompt_text_and_answers(bench: Bench) -> None:
    def tokens(captions: Sequence[str] = CARS, **changed: Any) -> tuple[float, float]:
        left = steps_left(Run(bench.settings(captions, **changed), bench.store), {})[1]
        return left.prompt_tokens, left.completion_tokens

    few_shot, paper = tokens(), tokens(prompts="paper")
    assert few_shot[0] > 2 * paper[0] and few_shot[1] == paper[1]
    # Seven words make about nine tokens.
    assert 12 < paper[0] < 60 and 7 < paper[1] / 2 < 12
    assert tokens(prompts="paper", sampling={"n": 6})[1] == 3 * paper[1]
    longer = tokens([f"{text} and beside a very big red house" for text in CARS], prompts="paper")
    assert longer[0] > paper[0] + 5 and longer[1] > paper[1] + 10
