"""The feature viewer as a person meets it: JupyterLab in a real browser, on a small synthetic run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.browser import lab
from tests.report.synthetic_run import write_run

REPO = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "present")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a run and the viewer's notebook, pointed at it."""
    folder = tmp_path_factory.mktemp("lab")
    write_run(folder / "run")
    source = (REPO / "notebooks" / "viewer.py").read_text(encoding="utf-8")
    assert 'run_dir = "runs/demo"' in source
    (folder / "viewer.py").write_text(source.replace('"runs/demo"', repr(str(folder / "run"))), encoding="utf-8")
    subprocess.run([sys.executable, "-m", "jupytext", "--to", "ipynb", folder / "viewer.py"], check=True)
    return folder


def test_viewer_in_a_browser_shows_a_feature_and_follows_a_click(folder, tmp_path):
    (folder / "home").mkdir()
    with lab.jupyterlab(folder, folder / "home") as address, lab.page(folder / "home") as page:
        lab.run_all(page, address, "viewer.ipynb")
        page.wait_for_selector(".mtv-image img")
        page.select_option(".mtv-sort select", "verdict")
        page.fill(".mtv-search input", "script")
        page.press(".mtv-search input", "Enter")
        page.wait_for_function("document.querySelectorAll('.mtv-list select option').length === 1")  # search is done
        page.wait_for_function("document.querySelector('.mtv-name').innerText.startsWith('<script>')")
        assert page.evaluate("window.hacked") is None
        assert r"$\unknown$ [six](http://x) | *b*" in page.inner_text(".mtv-name")
        page.fill(".mtv-search input", "")
        page.press(".mtv-search input", "Enter")
        page.wait_for_function("document.querySelectorAll('.mtv-list select option').length > 40")
        third = page.inner_text(".mtv-list select option:nth-child(3)").split()[1]
        page.select_option(".mtv-list select", index=2)
        page.wait_for_function(f"document.querySelector('.mtv-header').innerText.includes('FEATURE {third}\\n')")
        assert page.locator(".mtv-image img").count() >= 5
        assert page.locator(".mtv-histogram svg rect").count() > 3
        (tmp_path / "page.png").write_text("<html>no image</html>")
        with page.expect_file_chooser() as chooser:
            page.click(".mtv-upload")
        chooser.value.set_files(tmp_path / "page.png")
        page.wait_for_selector(".mtv-upload-preview .message")
        assert "cannot be used" in page.inner_text(".mtv-upload-preview")
        page.screenshot(path=tmp_path / "viewer.png")
        assert (tmp_path / "viewer.png").stat().st_size > 20_000
        page.click(".mtv-similar-feature >> nth=0")
        page.wait_for_function(f"!document.querySelector('.mtv-header').innerText.includes('FEATURE {third}\\n')")
        assert not page.errors, page.errors
