"""The house is measured as it is, and circles are seen wherever an import stands."""

from __future__ import annotations

import importlib.util
from pathlib import Path

HOUSE = Path(__file__).parents[2] / "benchmarks" / "house.py"
spec = importlib.util.spec_from_file_location("benchmark_house", HOUSE)
assert spec is not None and spec.loader is not None
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


def test_every_line_of_the_product_is_of_one_kind() -> None:
    figures = house.measure(house.HOME)
    assert sum(figures["kinds"].values()) == figures["product"]["lines"] > 10_000
    assert figures["options"] > 50


def test_circles_and_kinds(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box/__init__.py").write_text("")
    (tmp_path / "box/one.py").write_text('"""One."""\n\nfrom box import two\n\n# why\nx = """text"""  # beside\n')
    (tmp_path / "box/two.py").write_text("if TYPE_CHECKING:\n    from box.one import x\n")
    (tmp_path / "box/three.py").write_text("def f():\n    import box.one\n")
    files = house.files_in(tmp_path, "box")
    assert house.circles(house.imports(tmp_path, files)) == [["box.one", "box.two"]]
    assert house.kinds(tmp_path / "box/one.py") == ["docstring", "blank", "import", "blank", "comment", "code"]
