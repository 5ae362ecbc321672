"""What a report holds, and who owns it."""

import pytest

from mtlib.run import publish
from mtlib.run.profiles import Places
from tests.run import small

TIMINGS = {"01_a": {"seconds": 1.24, "peak_mb": 10}, "05_features": {"seconds": 2, "peak_mb": 200}}


def make(root, name, files):
    for file, text in files.items():
        (root / name / file).parent.mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text(text)
    return root / name


def test_publish_replaces_what_a_stage_published_before(tmp_path):
    files = {"figures/01_x.png": "x", "tables/01_x.csv": "x", "notebooks/01_a.html": "h", "weights.bin": "w"}
    first = make(tmp_path, "01_a-1", files)
    features = make(tmp_path, "05_features-1", {"features/topk/collages/7.jpg": "7"})
    report = make(
        tmp_path, "report", {"figures/01_old.png": "o", "figures/08_other.png": "o", "collages/gone/1.jpg": "o"}
    )
    make(tmp_path, "mtlib", {"__init__.py": "", "report/__init__.py": "", "report/build.py": small.BUILD})
    publish.publish(report, {"01_a": first, "05_features": features}, tmp_path, TIMINGS, Places(tmp_path))
    files = {p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file()}
    assert files == {
        "figures/01_x.png",
        "tables/01_x.csv",
        "collages/topk/7.jpg",
        "notebooks/01_a.html",
        "README.md",
        "timings.csv",
    }
    assert (report / "timings.csv").read_text() == "stage,seconds,peak_mb\n01_a,1.2,10\n05_features,2.0,200\n"


def test_names_without_the_stages_number_are_refused(tmp_path):
    folder = make(tmp_path, "01_a-1", {"tables/x.csv": ""})
    with pytest.raises(ValueError, match=r"01_a wrote tables/x\.csv; its name must start with 01_"):
        publish.check_names("01_a", folder, "01")
