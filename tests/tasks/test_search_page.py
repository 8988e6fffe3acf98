"""The search page's HTTP interface, over two small models and an index of drawn images."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from paraclip.storage.artifacts import ArtifactStore
from paraclip.tasks.audit import audit
from paraclip.tasks.image_index import search, search_target
from paraclip.tasks.search_page import make_app
from paraclip.tasks.search_page.engine import Catalogue, SearchEngine
from paraclip_core.clip.encode import encode_texts
from paraclip_core.clip.expansion import Heads
from paraclip_core.clip.export import save_release
from paraclip_core.clip.load import load_clip
from paraclip_core.errors import InputError, ModelError
from tests.kit.search_home import COUNT, make_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two releases of one image encoder, pictures, and their features."""
    home = tmp_path_factory.mktemp("page")
    make_home(home)
    return home


def client(
    home: Path, folder: Path, token: str | None = None, heads: Heads | None = None, **paths: Path | None
) -> TestClient:
    given = {"features": home / "index.npy", "ids": home / "ids.txt", "images": home / "pictures"} | paths
    store = ArtifactStore(folder)
    target = search_target(str(home / "tuned"), store, str(home / "base"), **given)
    return TestClient(make_app(SearchEngine(target), Catalogue(target), {"model": "m"}, token, heads=heads))


@pytest.fixture
def page(home: Path, tmp_path: Path) -> Iterator[TestClient]:
    with client(home, tmp_path) as opened:
        yield opened


def ids(side: dict[str, Any]) -> list[str]:
    return [hit["image_id"] for hit in side["hits"]]


def expected(home: Path, model: str, *texts: str) -> list[str]:
    """The index's images by their cosine with the mean of the texts' features."""
    features = np.load(home / "index.npy").astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    scores = features @ encode_texts(load_clip(str(home / model)), texts).mean(axis=0)
    return [f"{row:02d} <b>.png" for row in np.argsort(-scores, kind="stable")]


def test_base_and_tuned_are_ranked_as_their_models_say_and_alpha_goes_from_one_to_the_other(
    page: TestClient, home: Path
) -> None:
    answers = [
        page.post("/search", json={"query": "a dog", "count": COUNT, "alpha": alpha}).json()
        for alpha in (1, 0.5, 0, 0.5)
    ]
    for name in ("base", "tuned"):
        assert ids(answers[0][name]) == expected(home, name, "a dog")
    assert ids(answers[0]["base"]) != ids(answers[0]["tuned"]) and answers[2]["base"] == answers[2]["tuned"]
    scores = [[hit["score"] for hit in answer["tuned"]["hits"]] for answer in answers]
    assert scores[0] != scores[1] != scores[2] and scores[1] == scores[3]


def test_a_query_and_its_paraphrase_are_compared(page: TestClient) -> None:
    answer = page.post("/search", json={"query": "a dog", "paraphrased_query": "A  DOG"}).json()
    assert answer["base"]["ao"] == answer["base"]["js"] == 100 and len(answer["base"]["shared"]) == 10
    answer = page.post("/search", json={"query": "a dog", "paraphrased_query": "rain on the roof"}).json()
    side = answer["tuned"]
    both = {hit["row"] for hit in side["hits"][:10]} & {hit["row"] for hit in side["paraphrased_hits"][:10]}
    assert set(side["shared"]) == both and side["js"] == pytest.approx(100 * len(both) / (20 - len(both)), abs=0.1)


def test_queries_of_the_heads_file_are_ranked_by_their_mean_as_well(home: Path, tmp_path: Path) -> None:
    heads = Heads(tmp_path / "heads.parquet", "m", {"a dog": ["one hound", "a puppy"], "a puppy": []})
    with client(home, tmp_path, heads=heads) as page:
        assert page.get("/facts").json()["heads"] == 2
        answer = page.post("/search", json={"query": "a  dog", "count": COUNT}).json()
        assert list(answer) == ["base", "tuned", "expanded"]
        assert ids(answer["expanded"]) == expected(home, "tuned", "a  dog", "one hound", "a puppy")
        # The tuned side's model, whatever α says.
        base = page.post("/search", json={"query": "a puppy", "alpha": 0}).json()
        assert ids(base["expanded"]) == ids(base["base"])
        both = page.post("/search", json={"query": "a dog", "paraphrased_query": "a puppy"}).json()
        assert both["expanded"]["depth"] == 10
        one = page.post("/search", json={"query": "a dog", "paraphrased_query": "a cat"}).json()
        assert "ao" in one["tuned"] and "ao" not in one["expanded"]
        assert list(page.post("/search", json={"query": "a cat"}).json()) == ["base", "tuned"]


def test_images_like_one_start_with_it(page: TestClient) -> None:
    answer = page.post("/search", json={"like": "05 <b>.png"}).json()
    assert list(answer) == ["images"]
    like = answer["images"]["hits"][0]
    assert like["image_id"] == "05 <b>.png" and like["score"] == pytest.approx(1, abs=1e-3)


def test_pictures(page: TestClient, home: Path, tmp_path: Path) -> None:
    answer = page.get("/images/3")
    assert answer.headers["content-type"] == "image/jpeg" and answer.content[:2] == b"\xff\xd8"
    assert page.get(f"/images/{COUNT}").status_code == 404
    assert page.get("/images/..%2f..%2fetc%2fpasswd").status_code in (404, 422)
    with client(home, tmp_path / "none", images=None) as without:
        assert without.get("/facts").json()["pictures"] is False
        assert len(without.post("/search", json={"query": "a dog"}).json()["tuned"]["hits"]) == 20
        answer = without.get("/images/0")
        assert answer.status_code == 404 and "give --images" in answer.json()["detail"]


def test_a_picture_that_is_gone_is_a_gap(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    with client(home, tmp_path, images=tmp_path / "pictures") as page:
        (tmp_path / "pictures" / "03 <b>.png").unlink()
        (tmp_path / "pictures" / "04 <b>.png").write_bytes(b"no picture")
        for row in (3, 4):
            answer = page.get(f"/images/{row}")
            assert answer.status_code == 404 and f"0{row} <b>.png" in answer.json()["detail"]
        assert page.get("/images/5").status_code == 200
        like = {"like": "03 <b>.png", "count": 3}
        assert len(page.post("/search", json=like).json()["images"]["hits"]) == 3


def test_bad_requests_say_what_is_wrong(page: TestClient) -> None:
    for body, message in (
        ({"query": "  "}, "expected words to search for"),
        ({"query": "x" * 5000}, "query: String should have at most 2000 characters"),
        ({"query": "a", "alpha": 2}, "alpha: Input should be less than or equal to 1"),
        ({"like": "gone.png"}, "no image 'gone.png'; it may be gone since the page was loaded"),
    ):
        answer = page.post("/search", json=body)
        assert answer.status_code in (404, 422) and message in answer.json()["detail"]


def test_a_token_is_asked_of_everything(home: Path, tmp_path: Path) -> None:
    with client(home, tmp_path / "open") as page:
        assert "default-src 'none'" in page.get("/").headers["content-security-policy"]
    with client(home, tmp_path, token="secret") as page:
        for path in ("/", "/facts", "/images/0", "/openapi.json"):
            assert page.get(path).status_code == 401
        assert page.get("/facts", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert page.get("/?token=wrong").status_code == 401 and page.get("/?token=secret").status_code == 200
        # The browser has it as a cookie from now on.
        assert page.get("/facts").status_code == 200


def test_an_index_that_does_not_fit_is_refused_before_the_page_is_served(home: Path, tmp_path: Path) -> None:
    broken = np.load(home / "index.npy")
    broken[5, 3] = np.nan
    np.save(tmp_path / "narrow.npy", np.ones((COUNT, 8), np.float32))
    np.save(tmp_path / "broken.npy", broken)
    (tmp_path / "nothing").mkdir()
    refused: tuple[tuple[str, str, type[Exception], str], ...] = (
        ("features", "narrow.npy", ModelError, "made with another image encoder"),
        ("features", "broken.npy", InputError, r"'05 <b>.png' \(row 5\) are not finite"),
        ("images", "nowhere", InputError, "cannot read images"),
        ("images", "nothing", InputError, r"none of the 40 images of the index \(the first is '00 <b>.png'\)"),
    )
    for option, name, error, message in refused:
        paths: Any = {option: tmp_path / name}
        with pytest.raises(error, match=message):
            client(home, tmp_path / "root", **paths)


def test_models_of_different_image_encoders_share_no_index(home: Path, tmp_path: Path) -> None:
    other = load_clip(str(home / "base"))
    visual: Any = other.model.visual
    with torch.no_grad():
        next(visual.parameters()).add_(0.01)
    save_release(other, tmp_path / "other", "")
    target = search_target(
        str(home / "tuned"), ArtifactStore(tmp_path), str(tmp_path / "other"), home / "index.npy", home / "ids.txt"
    )
    for use in (SearchEngine, lambda target: search(target, "a dog", 3), lambda target: audit(target, [("a", "b")])):
        with pytest.raises(ModelError, match=r"different image encoders \(\w{12} and \w{12}\).*give --base"):
            use(target)
