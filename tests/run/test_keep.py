"""What is kept of a report: small, and without links to what is not there."""

import pytest

from mtlib.run import artifacts, publish
from mtlib.run.artifacts import ArtifactError
from mtlib.run.params import ParamsError
from mtlib.run.profiles import Places


def report(root, name: str, text: str, **sizes: int):
    folder = root / "reports" / name
    for path, size in ({"README.md": 0} | sizes).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(b"x" * size)
    (folder / "README.md").write_text(text)
    artifacts.close(folder, root / "runs" / name / publish.RECORD)


TEXT = "![a](figures/01_a.png) [all](tables/big.csv) [small](tables/small.csv) [page](notebooks/01_a.html) [web](https://x.y)"
FILES = {"figures/01_a.png": 10, "figures/01_b.png": 10, "tables/big.csv": 60_000, "tables/small.csv": 10}


def test_pages_shown_pictures_and_small_tables_are_kept_and_dead_links_are_text(tmp_path):
    report(tmp_path, "mine", TEXT, **FILES, **{"notebooks/01_a.ipynb": 5, "notebooks/01_a.html": 5})
    target = publish.keep("mine", Places(tmp_path))
    files = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert files == {"README.md", "figures/01_a.png", "tables/small.csv"}
    kept = (target / "README.md").read_text()
    assert kept == "![a](figures/01_a.png) all [small](tables/small.csv) page [web](https://x.y)"
    report(tmp_path, "mine", "nothing")
    files = {p.name for p in publish.keep("mine", Places(tmp_path)).rglob("*") if p.is_file()}
    assert files == {"README.md", "small.csv"}, "what was kept before is replaced"


def test_of_a_further_page_only_small_pictures_are_kept(tmp_path):
    sizes = {"figures/01_a.png": 70_000, "figures/01_b.png": 70_000, "figures/01_c.png": 10, "appendix.md": 0}
    report(tmp_path, "mine", "![a](figures/01_a.png)", **sizes)
    (tmp_path / "reports/mine/appendix.md").write_text("![b](figures/01_b.png) ![c](figures/01_c.png)")
    artifacts.close(tmp_path / "reports/mine", tmp_path / "runs/mine" / publish.RECORD)
    target = publish.keep("mine", Places(tmp_path))
    assert sorted(p.name for p in (target / "figures").iterdir()) == ["01_a.png", "01_c.png"]
    assert (target / "appendix.md").read_text() == "b ![c](figures/01_c.png)"


def test_a_page_that_is_not_as_it_was_published_is_refused(tmp_path):
    report(tmp_path, "mine", TEXT, **FILES)
    (tmp_path / "reports/mine/README.md").write_bytes(b"\xff" + TEXT.encode())
    with pytest.raises(ArtifactError, match=r"sha256 mismatch: .*README\.md; run the profile again"):
        publish.keep("mine", Places(tmp_path))


def test_the_demos_executed_notebooks_are_kept(tmp_path):
    report(tmp_path, "demo", TEXT, **FILES, **{"notebooks/01_a.ipynb": 5, "notebooks/01_a.html": 5})
    target = publish.keep("demo", Places(tmp_path))
    assert [p.name for p in (target / "notebooks").iterdir()] == ["01_a.ipynb"]


def test_too_much_and_nothing_are_refused(tmp_path):
    report(tmp_path, "mine", "![a](figures/01_a.png)", **{"figures/01_a.png": 1_500_001})
    with pytest.raises(
        ParamsError, match=r"keep mine: 1,500,0\d\d bytes, at most 1,500,000 are kept; the largest is figures/01_a"
    ):
        publish.keep("mine", Places(tmp_path))
    with pytest.raises(ParamsError, match="holds no page"):
        publish.keep("other", Places(tmp_path))
