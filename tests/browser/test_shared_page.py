"""The page of a run as a visitor meets it: a file in a Chromium without network."""

from __future__ import annotations

import pytest

from mtlib.report.page.write import write_page
from mtlib.report.reader import Reader
from tests.browser import lab, shared_page
from tests.report.synthetic_run import write_run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lab.missing()), reason=lab.missing() or "present")]
METHOD = "matryoshka_transcoder"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report that holds nothing but the page."""
    folder = tmp_path_factory.mktemp("shared")
    write_page(Reader.of_run(write_run(folder / "run")), folder / "report")
    return folder / "report"


@pytest.fixture
def page(tmp_path):
    with shared_page.opened(tmp_path) as shown:
        yield shown


def test_errors_stand_first_and_pictures_lead_to_features_and_back(report, page):
    shared_page.show(page, report / "index.html")
    assert page.locator(".finding").count() >= 3 and page.locator(".finding img").first.is_visible()
    page.click(".finding .tile >> nth=0")
    assert page.inner_text("h1") == "What fires on this image?" and page.locator(".line").count() > 3
    name = page.inner_text(".line .through >> nth=0")
    page.click(".line .through >> nth=0")
    assert page.inner_text("h1") == name and page.locator(".feature .tile").count() > 10
    page.go_back()
    assert page.inner_text("h1") == "What fires on this image?"
    assert shared_page.faults(page) == []


def test_addresses_filters_and_keys(report, page):
    shared_page.show(page, report / "index.html", f"#{METHOD}/3")
    assert "#3" in page.inner_text(".crumbs")
    page.keyboard.press("ArrowRight")
    assert "#3" not in page.inner_text(".crumbs")
    page.keyboard.press("/")
    page.keyboard.type("plain")
    page.wait_for_function("location.hash.includes('q=plain')")
    names = page.locator(".card h3").all_inner_texts()
    assert names and all("plain" in name for name in names)
    page.keyboard.press("Escape")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "plain" in page.inner_text("h1")
    page.keyboard.press("Escape")
    page.select_option("label:has-text('beside') select", "sae")
    assert page.locator(".column").count() == 2 and "vs=sae" in page.evaluate("location.hash")
    for torn in ("#nothing/7", f"#{METHOD}/999", "#%E0%A4%A", "#:image/x?sort=__proto__&show=toString&vs=none"):
        shared_page.show(page, report / "index.html", torn)
        assert page.locator(".card").count() > 10, torn
    assert shared_page.faults(page) == []


def test_hostile_texts_are_shown_as_text(report, page):
    data = shared_page.read(report / "index.html")
    for field, text in zip(shared_page.FIELDS, shared_page.PAYLOADS * 2, strict=False):
        data = shared_page.poisoned(data, field, text)
    index = shared_page.write(report / "index.html", data, report / "hostile.html")
    for address in ("", "#sae", "#sae/3", "#:image/2", "#sae?vs=sae"):
        shared_page.show(page, index, address)
        assert shared_page.faults(page) == [], address
    shared_page.show(page, index, "#sae/3")
    assert shared_page.PAYLOADS[7] in page.inner_text(".judges") and page.title().endswith(shared_page.PAYLOADS[0])


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(report, tmp_path, width):
    with shared_page.opened(tmp_path, width, 844, "dark") as page:
        for address in ("", "#sae/3", "#:image/2", "#sae?vs=matryoshka_transcoder"):
            shared_page.show(page, report / "index.html", address)
            assert shared_page.faults(page) == [], address
