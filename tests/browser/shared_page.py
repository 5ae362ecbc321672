"""The page of a run in a headless Chromium without network; hostile texts and many features put into its data."""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path

from tests.browser import lab

DATA = re.compile(r'(<script type="application/json" id="data">)(.*?)(</script>)', re.DOTALL)
HACK = "window.hacked=1"
PAYLOADS = (
    f"<script>{HACK}</script>",
    f"</script><script>{HACK}</script>",
    f"<img src=x onerror={HACK}>",
    f'"><svg onload={HACK}>',
    f"' onmouseover='{HACK}' autofocus onfocus='{HACK}",
    f"javascript:{HACK}",
    f"<iframe srcdoc='<script>parent.{HACK}</script>'></iframe>",
    f"<!--<script>{HACK}--></script>",
    f"${{{HACK}}} {{{{constructor.constructor('{HACK}')()}}}}",
    "__proto__",
    f"&lt;script&gt;{HACK}&lt;/script&gt; &#60;b&#62;",
    "a" * 400 + "\\u003cscript\\u003e" + HACK,
)
FIELDS = ("run", "remark", "method", "class", "path", "true error", "judge", "phrase", "verdict", "category", "detail")
FIELDS += ("top cause", "dominant class", "cause", "notebook")


def read(index: Path) -> dict:
    """The data in a page."""
    return json.loads(DATA.search(index.read_text(encoding="utf-8"))[2])


def write(index: Path, data: dict, target: Path) -> Path:
    """The same page with other data, written to `target`, which should stand beside the pictures."""
    text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    page = DATA.sub(lambda found: found[1] + text + found[3], index.read_text(encoding="utf-8"))
    target.write_text(page, encoding="utf-8")
    return target


def poisoned(data: dict, field: str, text: str) -> dict:
    """The data with one field of FIELDS as `text` wherever it stands."""
    data = copy.deepcopy(data)
    place = {"class": 2, "path": 3, "true error": 4}
    said = {"judge": 0, "phrase": 1, "verdict": 2, "category": 3, "detail": 5}
    if field in ("run", "remark"):
        data[field] = text
    elif field == "notebook":
        data["notebooks"] = [text]
    elif field in place:
        for image in data["images"]:
            image[place[field]] = text
    for i, method in enumerate(data["methods"]):
        if field == "method" and i == 0:
            method["name"] = text
        elif field == "judge":
            method["judges"] = [text, *method["judges"][1:]]
        elif field == "cause":
            method["causes"] = [[text, *line[1:]] for line in method["causes"]]
        elif field in ("top cause", "dominant class"):
            column = field.replace(" ", "_")
            method["columns"][column] = [text] * len(method["columns"]["feature"])
        if field in said:
            for line in (line for own in method["verdicts"] for line in own[: 1 if field == "judge" else None]):
                line[said[field]] = text
    return data


def enlarged(data: dict, n: int) -> dict:
    """The data with the features of its first method repeated until there are n of them, under numbers of their own."""
    method = copy.deepcopy(data["methods"][0])
    had = len(method["columns"]["feature"])
    lines = {k: method[k] for k in ("verdicts", "near", "histograms", "shown", "activations")} | method["columns"]
    for key, values in lines.items():
        more = (values * (n // had + 1))[:n]
        (method["columns"] if key in method["columns"] else method)[key] = more
    method["columns"]["feature"] = method["columns"]["copy_of"] = list(range(n))
    return data | {"methods": [method | {"n_latents": n, "n_alive": n}]}


@contextlib.contextmanager
def opened(home: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> Iterator:
    """A page of a Chromium that has no network. Its `errors`, `asked` (addresses requested) and `dialogs` are kept."""
    with lab.page(home, width, height) as shown:
        shown.context.set_offline(True)
        shown.emulate_media(color_scheme=scheme)
        shown.asked, shown.dialogs = [], []
        shown.on("request", lambda r: shown.asked.append(r.url))
        shown.on("dialog", lambda d: (shown.dialogs.append(d.message), d.dismiss()))
        shown.on("console", lambda m: shown.errors.append(m.text) if m.type in ("error", "warning") else None)
        yield shown


def show(page, index: Path, address: str = "") -> None:
    """Load the page afresh at an address of its own."""
    page.goto("about:blank")
    page.goto(index.resolve().as_uri() + address)
    page.wait_for_selector("main > *")


def faults(page) -> list[str]:
    """What a hostile text has done to the page: ran, made an element or an attribute, or asked for anything elsewhere."""
    found = page.evaluate(
        "() => [window.hacked && 'ran', {}.hacked && 'prototype',"
        " document.querySelectorAll('script').length !== 2 && 'script',"
        " document.querySelector('main iframe, main script, main object, main [srcdoc], main svg[onload]') && 'element',"
        " [...document.querySelectorAll('*')].some((e) => [...e.attributes].some((a) => a.name.startsWith('on'))) && 'on...',"
        " [...document.querySelectorAll('img')].some((e) => !/^page\\/[0-9a-f]{20}\\.webp$/.test(e.getAttribute('src'))) && 'img',"
        " [...document.querySelectorAll('a')].some((e) => e.href && !/^file:/.test(e.href)) && 'link',"
        " document.documentElement.scrollWidth > innerWidth && 'wider than the window'].filter(Boolean)"
    )
    elsewhere = [url for url in page.asked if not url.startswith(("file:", "about:", "data:"))]
    return found + page.dialogs + elsewhere + page.errors
