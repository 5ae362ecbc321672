"""Committed reports on images that are not of our own drawing show none of them."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORTS = sorted(p.parents[1] for p in (ROOT / "reports").glob("*/notebooks/01_embed.ipynb"))
SHEETS = ("01_images.png", "07_labels.png", "concepts_neighbours.png")  # tokens_features has a white square instead


def given(report: Path) -> dict:
    """What notebook 01 ran with: the parameters and what was injected over them."""
    cells = json.loads((report / "notebooks/01_embed.ipynb").read_text(encoding="utf-8"))["cells"]
    wanted = [c for c in cells if {"parameters", "injected-parameters"} & set(c["metadata"].get("tags", []))]
    lines = [line for c in wanted for line in ast.parse("".join(c["source"])).body if isinstance(line, ast.Assign)]
    return {line.targets[0].id: ast.literal_eval(line.value) for line in lines}


def photographs(report: Path) -> bool:
    return bool(given(report).get("images"))


def test_reports_of_photographs_are_told_from_those_of_scenes():
    kinds = {r.name: photographs(r) for r in REPORTS}
    assert kinds["demo"] is False and kinds["cifar10"] is True


@pytest.mark.parametrize("report", [r for r in REPORTS if photographs(r)], ids=lambda r: r.name)
def test_report_of_photographs_shows_none(report):
    assert given(report)["pictures"] is False
    assert [p.name for p in report.rglob("*") if p.suffix in (".jpg", ".jpeg") or p.name in SHEETS] == []
    for name in ("01_embed", "05_features", "06_interpret", "07_results"):
        assert '"image/jpeg"' not in (report / f"notebooks/{name}.ipynb").read_text(encoding="utf-8"), name
        assert "data:image/jpeg" not in (report / f"notebooks/{name}.html").read_text(encoding="utf-8"), name
