"""Kept reports on images that are not of our own drawing show none of them."""

from pathlib import Path

import pytest

KEPT = Path(__file__).resolve().parents[2] / "reports" / "kept"
REPORTS = sorted(p.parent for p in KEPT.glob("*/README.md"))
SHEETS = ("01_images.png", "07_labels.png", "concepts_neighbours.png")  # tokens_features has a white square instead


def photographs(report: Path) -> bool:
    said = "".join(page.read_text(encoding="utf-8") for page in report.glob("*.md"))
    return "| data | a folder of images" in said


def test_reports_of_photographs_are_told_from_those_of_scenes():
    kinds = {r.name: photographs(r) for r in REPORTS}
    assert kinds["demo"] is False and all(kinds[name] for name in kinds if name.endswith("cifar10"))
    assert kinds["cifar10_methods"]


@pytest.mark.parametrize("report", [r for r in REPORTS if photographs(r)], ids=lambda r: r.name)
def test_report_of_photographs_shows_none(report):
    assert [p.name for p in report.rglob("*") if p.suffix in (".jpg", ".jpeg") or p.name in SHEETS] == []
    assert not list(report.rglob("*.ipynb")) and not list(report.rglob("*.html"))  # nor in cells that drew them
