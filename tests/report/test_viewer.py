"""The viewer's kernel side, driven end to end on a small run."""

from __future__ import annotations

import io
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.judge.labeler import Labeler
from mtlib.report import widgets
from mtlib.report.viewer import FeatureViewer
from mtlib.report.widgets import HTML
from mtlib.run.artifacts import ArtifactError
from tests.report.synthetic_run import HOSTILE


@pytest.fixture
def viewer(run):
    return FeatureViewer(run)


def upload(viewer, name: str, content: bytes) -> None:
    """What the browser's file dialog does."""
    value = {"name": name, "type": "image/png", "size": len(content), "content": memoryview(content)}
    viewer.on.upload.value = ({**value, "last_modified": datetime(2026, 1, 1)},)


def png() -> bytes:
    """Bytes of a small PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), "#3366aa").save(buffer, "PNG")
    return buffer.getvalue()


def test_viewer_opens_on_the_highest_error_ratio(viewer):
    assessed = viewer.table[viewer.table["assessed"]]
    ratios = assessed["error_ratio"]
    assert ratios[viewer.feature] == ratios.max() and viewer.on.list.value == viewer.feature
    assert viewer.on.method.value == "matryoshka_transcoder" and len(viewer.on.list.options) == len(assessed)
    assert all(b.layout.display == "none" for b in viewer.on.labels)
    assert all(b.layout.display == "" for b in viewer.on.similar)


def test_viewer_shows_images_with_activations_numbers_histogram_and_neighbours(viewer):
    viewer.on.sort.value = "density"
    gallery = viewer.on.gallery.value
    top = viewer.top[(viewer.top["feature"] == viewer.feature) & (viewer.top["split"] == "val")]
    assert gallery.count("data:image/png;base64,") == len(top) > 3
    assert f"{top['activation'].max():.2f}" in gallery
    assert viewer.on.histogram.value.count("<rect") > 3 and "error ratio" in viewer.on.tiles.value
    val = viewer.on.gallery.value
    viewer.on.split.value = "test"
    assert viewer.on.gallery.value != val
    cosines = [float(b.description.split()[0]) for b in viewer.on.similar]
    assert len(cosines) == 6 and cosines == sorted(cosines, reverse=True), "the closest first"
    neighbour = viewer.on.similar[0].feature
    viewer.on.similar[0].click()
    assert viewer.feature == neighbour


def test_viewer_filters_and_steps_through_what_is_left(viewer):
    viewer.on.verdict.value = "error"
    viewer.on.search.value = "fingers"
    assert 0 < len(viewer.features) < len(viewer.table)
    assert all("fingers" in viewer.table.loc[f, "phrase"] + viewer.table.loc[f, "category"] for f in viewer.features)
    first = viewer.feature
    viewer.on.next.click()
    assert viewer.feature == viewer.features[(list(viewer.features).index(first) + 1) % len(viewer.features)]
    viewer.on.previous.click()
    assert viewer.feature == first
    viewer.show(viewer.features[-1])
    viewer.on.next.click()
    assert viewer.feature == viewer.features[0], "the list wraps round"
    viewer.on.previous.click()
    assert viewer.feature == viewer.features[-1]
    viewer.show(next(f for f in viewer.table.index if f not in viewer.features))
    viewer.on.next.click()
    assert viewer.feature == viewer.features[0], "from a feature that the list lacks, to its first"
    viewer.on.search.value = "no such words"
    assert viewer.feature is None and "No feature" in viewer.on.header.value and viewer.on.gallery.value == ""
    viewer.on.next.click()
    assert viewer.feature is None and all(b.layout.display == "none" for b in viewer.on.similar)
    viewer.on.search.value = ""
    assert viewer.feature is not None


def test_viewer_changes_method_and_judge(viewer):
    viewer.on.method.value = "sae"
    assert viewer.table["phrase"].ne("").any() and "sae" in viewer.on.header.value
    viewer.on.judge.value = "truth"
    assert set(viewer.table["phrase"]) == {"hand_error"}


def test_viewer_shows_hostile_names_as_text(viewer):
    hostile = viewer.table.index[viewer.table["phrase"] == HOSTILE][0]
    viewer.show(int(hostile))
    assert "<script>window" not in viewer.on.header.value and "&lt;script&gt;" in viewer.on.header.value
    assert "<script>" in "".join(label for label, _ in viewer.on.list.options)  # options are text in the browser


def test_viewer_labels_an_uploaded_image(viewer, monkeypatch):
    viewer.on.method.value = "sae"  # its error features push the logit up
    labeler = Labeler(viewer.reader.run_dir, viewer.on.method.value)
    images = (np.array(viewer.data.x[row]) for row in viewer.data.rows("test"))
    x, found = next((x, found) for x in images if (found := labeler.get_explanations(x)))
    monkeypatch.setattr(Labeler, "embed", lambda self, image: x)  # the synthetic embeddings have no encoder
    upload(viewer, "mine.png", png())
    shown = [b for b in viewer.on.labels if b.layout.display != "none"]
    preview = viewer.on.upload_preview.value
    assert shown and "Predicted: " in preview and "data:image/png" in preview
    assert shown[0].feature == found[0]["feature_num"]
    shown[0].click()
    assert viewer.feature == shown[0].feature
    assert shown[0].description.split("#")[1].startswith(str(viewer.feature))


def test_viewer_says_why_an_upload_cannot_be_used(viewer):
    upload(viewer, "page.png", b"<html>no image</html>")
    assert "cannot be used" in viewer.on.upload_preview.value
    assert all(b.layout.display == "none" for b in viewer.on.labels)
    upload(viewer, "mine.png", png())  # no encoder called "synthetic"
    assert "No labels" in viewer.on.upload_preview.value


def test_viewer_without_labels_or_images_shows_word_cards(unlabelled):
    viewer = FeatureViewer(unlabelled)
    assert viewer.on.method.options == ("sae",) and "base64" not in viewer.on.gallery.value
    assert 'class="word"' in viewer.on.gallery.value and "error ratio" not in viewer.on.tiles.value


def test_viewer_of_an_empty_run_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="no finished stage"):
        FeatureViewer(tmp_path)


def test_viewer_calls_a_cause_true_only_where_the_truth_does(viewer):
    record = viewer.table.iloc[0].to_dict() | {"is_error": False, "top_cause": "fingers", "top_cause_share": 0.35}
    assert "commonest cause" in HTML.tiles(record) and "true cause" not in HTML.tiles(record)
    record["is_error"] = True
    assert "true cause" in HTML.tiles(record)


def test_viewer_says_of_an_image_that_cannot_be_read_and_of_one_without_a_label():
    top = pd.DataFrame({"path": ["a", '"><b>'], "activation": [1.0, 2.0], "label": pd.array([1, None], dtype="Int64")})
    html = widgets.gallery(top, [None, "a word <i>"])
    assert html.count("<figure") == 2 and "<b>" not in html.replace("<figcaption><b>", "") and "<i>" not in html
    assert "cannot be read" in html and html.count("implausible") == 1
