"""The page of a run: what it shows is what the stages wrote, and every picture it names is there."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from mtlib.embed.store import open_run
from mtlib.report import browse
from mtlib.report.page import write
from mtlib.report.reader import Reader
from tests.browser.shared_page import read


@pytest.fixture(scope="module")
def report(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write.write_page(Reader.of_run(run), folder)
    return folder


def test_features_are_those_of_05_and_verdicts_those_of_06(run, report):
    reader, page = Reader.of_run(run), read(report / "index.html")
    assert [m["name"] for m in page["methods"]] == reader.methods()
    for method in page["methods"]:
        table = reader.features(method["name"]).set_index("feature")
        alive = table[table["n_active_test"] > 0]
        columns = pd.DataFrame(method["columns"]).set_index("feature")
        assert set(columns.index) == set(alive.index) and method["n_latents"] == len(table)
        np.testing.assert_allclose(columns["error_ratio"].astype(float).sort_index(), alive["error_ratio"], rtol=1e-3)
        assert method["errors"] == browse.error_features(reader, method["name"])["feature"].tolist()
        said = reader.verdicts(method["name"]).groupby("feature")["phrase"].agg(list)
        for feature, own in zip(columns.index, method["verdicts"], strict=True):
            assert [line[1] for line in own] == said[feature]


def test_images_of_features_and_features_of_images_agree_with_04(run, report):
    reader, page = Reader.of_run(run), read(report / "index.html")
    paths, method = [image[3] for image in page["images"]], page["methods"][0]
    top = reader.features(method["name"], "top_images").query("split == 'test'").sort_values("rank")
    for i, feature in enumerate(method["columns"]["feature"]):
        own = top[top["feature"] == feature]
        shown = [place for place in method["shown"][i][: write.TOP] if place >= 0]
        assert [paths[p] for p in shown] == own["path"].tolist()
        np.testing.assert_allclose(method["activations"][i][: len(shown)], own["activation"], rtol=1e-3)
        without = [p for p in method["shown"][i][-write.SILENT :] if p >= 0]
        assert all(feature not in method["images"][p][::2] for p in without)
        assert all(a == 0 for a in method["activations"][i][-write.SILENT :][: len(without)])
    fires = {(p, f) for p, flat in enumerate(method["images"]) for f in flat[::2]}
    assert len(fires) > 500 and all(len(flat) <= 2 * write.OF_IMAGE for flat in method["images"])


def test_heat_maps_are_a_letter_for_each_cell_of_the_images_shown(tmp_path):
    level = np.array([[[0, 63], [1, 25]], [[5, 5], [5, 5]]], np.uint8)
    np.savez_compressed(tmp_path / "heat.npz", feature=[3, 3], row=[10, 11], level=level, square=False)
    reader = SimpleNamespace(heat=lambda _: tmp_path / "heat.npz")
    assert write._heat(reader, "sae", {10: 4}) == {"side": (2, 2), "square": False, "maps": {3: {4: "A/BZ"}}}
    assert write._heat(SimpleNamespace(heat=lambda _: None), "sae", {}) == {}


def test_fifths_go_from_the_strongest_to_the_weakest():
    column = np.zeros((200, 1), np.float32)
    column[:100, 0] = np.arange(100, 0, -1)
    shown, activations = write.choose(sparse.csc_array(column), 0)
    assert shown[: write.TOP].tolist() == list(range(write.TOP))
    fifths = activations[write.TOP : -write.SILENT].reshape(write.FIFTHS, write.PER_FIFTH)
    assert (np.diff(fifths.ravel()) < 0).all() and ((fifths - 1) // 20 == np.arange(5)[::-1, None]).all()
    assert (shown[-write.SILENT :] >= 100).all() and len(set(shown[-write.SILENT :])) == write.SILENT
    assert write.choose(sparse.csc_array(column[:3]), 0)[0].tolist() == [0, 1, 2] + [-1] * (len(shown) - 3)


def test_page_is_one_file_whose_only_script_is_its_own(report):
    text = (report / "index.html").read_text(encoding="utf-8")
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    assert "<" not in data and text.count("<script") == 2
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in text
    assert not re.search(r"https?://", text.replace(data, "").replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", script)
    named = [image[0] for image in read(report / "index.html")["images"]]
    assert set(named) == {p.name for p in (report / write.PICTURES).iterdir()} and len(named) > 50


def test_pictures_stop_where_there_is_no_room_and_old_ones_go(run, tmp_path, monkeypatch):
    (tmp_path / write.PICTURES).mkdir()
    (tmp_path / write.PICTURES / "old.webp").write_bytes(b"old")
    monkeypatch.setattr(write, "MAX_BYTES", 12_000)
    write.write_page(Reader.of_run(run), tmp_path)
    page, files = read(tmp_path / "index.html"), list((tmp_path / write.PICTURES).iterdir())
    assert sum(p.stat().st_size for p in files) <= 12_000 and len(files) == len(page["images"]) > 5
    assert max(max(own) for m in page["methods"] for own in m["shown"]) == len(files) - 1


def test_without_pictures_words_stand_for_them(run, unlabelled, tmp_path):
    data = open_run(run)
    hidden = replace(data, facts=data.facts | {"pictures": False})
    assert write.write_pictures(hidden, data.rows("test"), tmp_path / "none") == [""] * len(data.rows("test"))
    assert not (tmp_path / "none").exists()
    write.write_page(Reader.of_run(unlabelled), tmp_path)
    page = read(tmp_path / "index.html")
    assert page["base_rate"] is None and not page["labelled"] and not (tmp_path / write.PICTURES).exists()
    assert {image[0] for image in page["images"]} == {""} and all(image[2] or image[3] for image in page["images"])
