"""docs/tour.ipynb runs from its first cell to its last and shows what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


@pytest.mark.nightly
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed: pip install -e '.[dev]'")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install -e '.[dev]'")
    monkeypatch.setenv("PARACLIP_ROOT", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, 4)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": NOTEBOOK.parent}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    html = ["".join(out.get("data", {}).get("text/html", "") for out in cell.outputs) for cell in cells]
    _, planned, ran, changed, search, audited, _ = html
    assert "to run" in planned and "paraphrase_1" in planned
    assert "ao@10" in ran and ("promote" in ran or "hold" in ran)
    # Styler's bars are gradients.
    assert "linear-gradient" in changed and "js@10" in changed
    assert search.count("<tr>") == 6 and "difference" in audited
