"""The page of a run in Chromium without network: links, hostile texts, 5,000 features, its size, how it looks.

    ./run_all.sh prove page [run]

Reads reports/<run>/ (demo). Hostile texts stand in every text field of the page of a small synthetic run, one payload and
field at a time, on every view. Writes the result and some screenshots beside it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from mtlib.report.page.write import write_page
from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import write_text
from tests.browser import lab, shared_page
from tests.report.synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "proofs/results/page.md"
MANY = 5000
MAX_MB = 15
ADDRESSES = ("#", "#sae", "#sae/3", "#:image/2", "#sae?vs=sae", "#sae?q=a&show=error")
LINKS = """async () => {
  const bad = [], seen = new Set(), state = {...START, method: "", feature: null, image: null};
  const views = [() => [start(state)], ...METHODS.map((m) => () => [results({...state, method: m.name}, 1e6)]),
    ...METHODS.flatMap((m) => m.features.map((f) => () => featureView({...state, feature: f}, [[f]]))),
    ...IMAGES.map((image) => () => imageView({...state, image}))];
  let n = 0;
  for (const view of views) {
    const box = h("div", {}, view());
    for (const a of box.querySelectorAll("a[href]")) {
      const href = a.getAttribute("href");
      n += 1;
      if (!seen.has(href) && seen.add(href) && address(readAddress(href)) !== href) bad.push(href);
    }
  }
  return {links: n, addresses: seen.size, views: views.length, bad};
}"""
LATENCY = """async (texts) => {
  const input = document.querySelector("input[type=search]"), took = [];
  for (const text of texts) {
    const from = performance.now();
    input.value = text;
    input.dispatchEvent(new Event("input"));
    await new Promise((done) => requestAnimationFrame(() => { document.body.offsetHeight; setTimeout(done); }));
    took.push(performance.now() - from);
  }
  return took;
}"""
PAINT = "() => performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def links(report: Path, home: Path) -> list[list]:
    """Every link and picture of every view leads somewhere."""
    data, index = shared_page.read(report / "index.html"), report / "index.html"
    files = [f"page/{image[0]}" for image in data["images"] if image[0]] + [f"notebooks/{n}" for n in data["notebooks"]]
    lost = [name for name in files if not (report / name).is_file()]
    with shared_page.opened(home) as page:
        shared_page.show(page, index)
        found = page.evaluate(LINKS)
        broken = shared_page.faults(page)
    what = f"{found['links']:,} links to {found['addresses']:,} addresses in {found['views']:,} views, {len(files):,} files"
    return [["links", what, f"{len(found['bad'])} addresses and {len(lost)} files lead nowhere, {len(broken)} faults"]]


def payloads(home: Path) -> list[list]:
    """Nothing of a hostile text runs, makes an element or asks for anything."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        write_page(Reader.of_run(write_run(Path(folder) / "run")), report)
        data, found, views = shared_page.read(report / "index.html"), [], 0
        with shared_page.opened(home, 390, 844) as page:
            for field in shared_page.FIELDS:
                for text in shared_page.PAYLOADS:
                    poisoned = shared_page.poisoned(data, field, text)
                    index = shared_page.write(report / "index.html", poisoned, report / "hostile.html")
                    shared_page.show(page, index)
                    for address in ADDRESSES:
                        page.evaluate("(address) => { location.hash = address; }", address)
                        page.wait_for_timeout(20)
                        found += [(field, text, address, fault) for fault in shared_page.faults(page)]
                        views += 1
    for line in found[:20]:
        print("fault:", *line)
    what = f"{len(shared_page.PAYLOADS)} payloads x {len(shared_page.FIELDS)} fields, {views:,} views 390 px wide"
    return [["hostile texts", what, f"{len(found)} ran, made an element, asked for anything or were too wide"]]


def many(report: Path, home: Path) -> list[list]:
    """How long the page with 5,000 features takes to appear, and to answer a key."""
    data = shared_page.enlarged(shared_page.read(report / "index.html"), MANY)
    index = shared_page.write(report / "index.html", data, report / f"page-{MANY}.html")
    try:
        with shared_page.opened(home) as page:
            shared_page.show(page, index)
            page.wait_for_timeout(1000)
            paint, size = page.evaluate(PAINT), index.stat().st_size / 1e6
            words = ["a", "an", "an e", "", "hand", "hand f", "zzz", "", "#12", "#123", "s", "sh", "sha", "shadow", ""]
            took = page.evaluate(LATENCY, words)
            begun = time.monotonic()
            for sort in ("active", "density", "number", "sure"):
                page.select_option("label:has-text('sort by') select", sort)
            sorting = (time.monotonic() - begun) / 4 * 1000
            assert page.locator(".card").count() >= 30 and not page.errors, page.errors
    finally:
        index.unlink()
    what = f"{MANY:,} features of one method, {size:.1f} MB of page"
    said = (
        f"first paint after {paint:.0f} ms; a key typed into the search: median {sorted(took)[len(took) // 2]:.0f} ms"
    )
    return [["many features", what, f"{said}, longest {max(took):.0f} ms; another order: {sorting:.0f} ms"]]


PARTS = [
    ".strip",
    "h2",
    ".text > div, .text > .bar",
    ".truth",
    ".methods",
]  # of a finding, in the order of the README's legend
BADGES = """parts => {
  parts.forEach((part, i) => {
    const place = document.querySelector(`.finding ${part}`).getBoundingClientRect(), badge = document.createElement("b");
    badge.textContent = i + 1;
    badge.style.cssText = `position: absolute; left: ${Math.max(2, place.left + scrollX - 30)}px; top: ${place.top + scrollY - 4}px; width: 24px; `
      + "height: 24px; border-radius: 12px; background: #b3261e; color: #fff; font: 700 15px/24px sans-serif; text-align: center";
    document.body.append(badge);
  });
}"""


def looks(report: Path, home: Path) -> list[list]:
    """Screenshots of four views, light and dark, wide and narrow; nothing is wider than its window."""
    data, written = shared_page.read(report / "index.html"), []
    method = next((m for m in data["methods"] if m["errors"]), data["methods"][0])
    feature = (method["errors"] or method["columns"]["feature"])[0]
    views = {"start": "", "feature": f"#{method['name']}/{feature}", "image": "#:image/0"}
    views["beside"] = f"#{method['name']}?vs={data['methods'][-1]['name']}"
    kept = {("start", "light", 1280), ("feature", "dark", 1280), ("image", "light", 1280), ("start", "dark", 390)}
    for width, scheme in ((w, s) for w in (1280, 390) for s in ("light", "dark")):
        with shared_page.opened(home, width, 900 if width > 600 else 844, scheme) as page:
            for name, address in views.items():
                shared_page.show(page, report / "index.html", address)
                assert shared_page.faults(page) == [], (name, width, scheme)
                if (name, scheme, width) in kept:
                    page.wait_for_timeout(1000)  # the pictures
                    file = RESULT.with_name(f"page_{name}_{scheme}_{width}.jpg")
                    page.screenshot(path=file, type="jpeg", quality=80)
                    written.append(file.name)
                if (name, scheme, width) == ("start", "light", 1280):
                    page.evaluate(BADGES, PARTS)
                    file, last = RESULT.with_name("page_read.jpg"), page.locator(".finding").nth(2).bounding_box()
                    area = {"x": 0, "y": last["y"] - 16, "width": width, "height": last["height"] + 32}
                    page.screenshot(path=file, type="jpeg", quality=80, clip=area)
                    written.append(file.name)
    return [
        ["looks", "start, feature, image, two methods beside each other; light, dark; 1280, 390 px", ", ".join(written)]
    ]


def main(run: str = "demo") -> None:
    report = ROOT / "reports" / run
    if lab.missing() or not (report / "index.html").is_file():
        sys.exit(f"error: {lab.missing() or f'reports/{run}/index.html is not there; run ./run_all.sh {run} first'}")
    files = [report / "index.html", *(report / "page").glob("*")]
    size = sum(p.stat().st_size for p in files) / 1e6
    data = shared_page.read(report / "index.html")
    features = sum(len(m["columns"]["feature"]) for m in data["methods"])
    what = f"{len(data['methods'])} methods, {features:,} features, {len(data['images']):,} images"
    lines = [["size", what, f"{size:.1f} MB of {MAX_MB}, {files[0].stat().st_size / 1e6:.1f} of them the page itself"]]
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for check in (links, many, looks):
            lines += check(report, home)
            print(*lines[-1], sep=": ", flush=True)
        lines += payloads(home)
        print(*lines[-1], sep=": ", flush=True)
    table = markdown_table(pd.DataFrame(lines, columns=["check", "of what", "found"]))
    write_text(
        RESULT,
        f"# Page\n\nRun `{run}`, a headless Chromium without network; {os.cpu_count()} cores, {os.getloadavg()[1]:.1f} processes waiting for them.\n\n{table}\n",
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
