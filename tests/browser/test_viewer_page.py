"""The feature viewer as a person meets it: the app in a real browser, on a small synthetic run."""

from __future__ import annotations

import pytest

from tests.browser import lab
from tests.report.synthetic_run import write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(lab.missing("voila")), reason=lab.missing("voila") or "present"),
]
OPTIONS = "document.querySelectorAll('.mtv-list select option').length"


def test_viewer_in_a_browser_opens_executed_and_follows_keys_and_clicks(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "home").mkdir()
    with lab.viewer(run, tmp_path / "home") as address, lab.page(tmp_path / "home", 1280, 800) as page:
        page.goto(address)
        page.wait_for_selector(".mtv-gallery button")
        assert page.locator(".mtv-run select option").all_inner_texts() == ["run"]
        page.fill(".mtv-search input", "script")
        page.press(".mtv-search input", "Enter")
        page.wait_for_function(f"{OPTIONS} === 1")  # search is done
        page.wait_for_function("document.querySelector('.mtv-name').innerText.startsWith('<script>')")
        assert page.evaluate("window.hacked") is None
        assert r"$\unknown$ [six](http://x) | *b*" in page.inner_text(".mtv-name")
        page.fill(".mtv-search input", "")
        page.press(".mtv-search input", "Enter")
        page.wait_for_function(f"{OPTIONS} > 20")
        page.select_option(".mtv-list select", index=0)
        third = page.inner_text(".mtv-list select option:nth-child(3)").split()[1]
        page.focus(".mtv-list select")
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        page.wait_for_function(f"/FEATURE {third}\\b/.test(document.querySelector('.mtv-header').innerText)")
        page.mouse.move(900, 400)
        page.mouse.wheel(0, 300)
        page.wait_for_function("document.querySelector('.mtv-name').getBoundingClientRect().top < 0")
        assert -20 < page.locator(".mtv-side").bounding_box()["y"] < 60, "the list stays beside the images"
        assert page.locator(".mtv-gallery button").count() >= 5
        page.click(".mtv-gallery button >> nth=1")
        page.wait_for_selector(".mtv-preview figure img")
        other = page.locator(".mtv-label:visible", has_text="#").nth(1)  # not `last`: they are filled one by one
        number = other.inner_text().split("#")[1].split()[0]
        other.click()
        page.wait_for_function(f"/FEATURE {number}\\b/.test(document.querySelector('.mtv-header').innerText)")
        (tmp_path / "page.png").write_text("<html>no image</html>")
        with page.expect_file_chooser() as chooser:
            page.click(".mtv-upload")
        chooser.value.set_files(tmp_path / "page.png")
        page.wait_for_selector(".mtv-preview .message:has-text('cannot be used')")
        assert [e for e in page.errors if "voila_heartbeat" not in e] == []  # Voilà's own, of a slow start
