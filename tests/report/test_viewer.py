"""The viewer's kernel side, driven end to end on a small run."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from datetime import datetime

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from mtlib.judge.labeler import Labeler
from mtlib.report import widgets
from mtlib.report.viewer import FeatureViewer
from mtlib.report.widgets import HTML
from mtlib.run.artifacts import ROOT, ArtifactError, finished_runs
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
    assert viewer.on.method.value == "matryoshka_transcoder"
    assert len(viewer.on.list.options) == assessed["copy_of"].nunique(), "copies are one line"
    assert all(b.layout.display == "none" for b in viewer.on.labels)
    assert all(b.layout.display == "" for b in viewer.on.similar)


def test_viewer_shows_images_with_activations_numbers_and_neighbours(viewer):
    viewer.on.sort.value = "density"
    top = viewer.top[(viewer.top["feature"] == viewer.feature) & (viewer.top["split"] == "val")]
    assert (
        viewer.on.pictures.value.count("url(data:image/webp;base64,") == len(top) == len(viewer.on.gallery.options) > 3
    )
    assert (
        viewer.on.gallery.options[0][0].startswith(f"{top['activation'].max():.2f}") and viewer.on.gallery.value is None
    )
    assert "error ratio" in viewer.on.tiles.value
    val = viewer.on.gallery.options
    viewer.on.split.value = "test"
    assert viewer.on.gallery.options != val
    cosines = [float(b.description.split()[0]) for b in viewer.on.similar]
    assert len(cosines) == 6 and cosines == sorted(cosines, reverse=True), "the closest first"
    neighbour = viewer.on.similar[0].feature
    viewer.on.similar[0].click()
    assert viewer.feature == neighbour


def test_an_image_leads_to_its_features_and_they_to_their_images(viewer):
    row = viewer.on.gallery.options[1][1]
    viewer.on.gallery.value = row
    shown = [b for b in viewer.on.labels if b.layout.display != "none"]
    z = viewer._subjects()[0].coder.encode(torch.from_numpy(np.array(viewer.data.x[row : row + 1])))[0].detach()
    assert viewer.feature in {b.feature for b in shown} and all(z[b.feature] > 0 for b in shown)
    assert f"{float(z[shown[0].feature]):.2f}" in shown[0].description and "data:image" in viewer.on.preview.value
    shown[-1].click()
    assert viewer.feature == shown[-1].feature and viewer.on.gallery.value is None


def test_copies_are_one_line_with_their_number(viewer):
    viewer.on.assessed.value = False
    first, *copies = viewer.features[:3]
    viewer.table.loc[copies, "copy_of"] = viewer.table.loc[first, "copy_of"]
    viewer._refresh()
    line = next(text for text, f in viewer.on.list.options if f == first)
    assert (
        "×3" in line
        and not set(copies) & set(viewer.features)
        and f"{len(viewer.table) - 2} without" in viewer.on.count.value
    )
    viewer.show(copies[0])
    assert viewer.on.list.value == first and f"#{copies[1]}" in viewer.on.header.value


def test_viewer_filters(viewer):
    viewer.on.verdict.value = "error"
    viewer.on.search.value = "fingers"
    assert 0 < len(viewer.features) < len(viewer.table)
    assert all("fingers" in viewer.table.loc[f, "phrase"] + viewer.table.loc[f, "category"] for f in viewer.features)
    viewer.show(next(f for f in viewer.table.index if f not in viewer.features))
    assert viewer.on.list.value is None, "a feature that the list lacks"
    viewer.on.search.value = "no such words"
    assert viewer.feature is None and "No feature" in viewer.on.header.value and viewer.on.gallery.options == ()
    assert all(b.layout.display == "none" for b in viewer.on.similar)
    viewer.on.search.value = ""
    assert viewer.feature is not None


def test_the_run_is_chosen_by_a_control(run, unlabelled, tmp_path):
    for source in (run, unlabelled):
        shutil.copytree(source, tmp_path / source.name)
    viewer = FeatureViewer(tmp_path / "synthetic")
    assert [name for name, _ in viewer.on.run.options] == [r.name for r in finished_runs(tmp_path / "arrays")]
    viewer.on.run.value = tmp_path / "arrays"
    assert viewer.reader.name == "arrays" and viewer.on.sort.value == "max activation" and not viewer.on.assessed.value
    damaged = next((tmp_path / "synthetic").glob("05_features-*/features/sae/features.parquet"))
    damaged.write_bytes(b"")
    viewer.on.run.value = tmp_path / "synthetic"
    assert viewer.reader.name == "arrays" and "features.parquet" in viewer.on.note.value


def test_an_unknown_run_is_an_error_before_anything_starts(run):
    done = subprocess.run(
        [sys.executable, "-m", "mtlib.report.serve", "nothing"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    with pytest.raises(ArtifactError, match="synthetik: no finished run; did you mean synthetic"):
        finished_runs(run.parent / "synthetik")


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
    preview = viewer.on.preview.value
    assert shown and "Predicted: " in preview and "data:image/webp" in preview
    assert shown[0].feature == found[0]["feature_num"]
    shown[0].click()
    assert viewer.feature == shown[0].feature
    assert shown[0].description.split("#")[1].startswith(str(viewer.feature))
    monkeypatch.setattr(Labeler, "distance", lambda self, image: 1.5)  # further away than the run's images
    assert viewer.label(png()) == [] and "Unlike the images of this run (1.5 " in viewer.on.preview.value
    assert all(b.layout.display == "none" for b in viewer.on.labels)


def test_viewer_says_why_an_upload_cannot_be_used(viewer):
    upload(viewer, "page.png", b"<html>no image</html>")
    assert "cannot be used" in viewer.on.preview.value
    assert all(b.layout.display == "none" for b in viewer.on.labels)
    upload(viewer, "mine.png", png())  # no encoder called "synthetic"
    assert "No labels" in viewer.on.preview.value


def test_viewer_without_labels_or_images_shows_word_cards(unlabelled):
    viewer = FeatureViewer(unlabelled)
    assert viewer.on.method.options == ("sae",) and "base64" not in viewer.on.pictures.value
    word = viewer.data.caption(viewer.on.gallery.options[0][1])
    assert viewer.on.gallery.options[0][0].startswith(word) and "error ratio" not in viewer.on.tiles.value


def test_viewer_of_an_empty_run_says_what_to_do(tmp_path):
    with pytest.raises(ArtifactError, match="no run has features yet"):
        FeatureViewer(tmp_path / "run")


def test_viewer_calls_a_cause_true_only_where_the_truth_does(viewer):
    record = viewer.table.iloc[0].to_dict() | {"is_error": False, "top_cause": "fingers", "top_cause_share": 0.35}
    assert "commonest cause" in HTML.tiles(record) and "true cause" not in HTML.tiles(record)
    record["is_error"] = True
    assert "true cause" in HTML.tiles(record)


def test_viewer_says_of_an_image_that_cannot_be_read_and_of_one_without_a_label(viewer):
    top = pd.DataFrame({"path": ["a", '"><b>'], "activation": [1.0, 2.0], "label": pd.array([1, None], dtype="Int64")})
    widgets.fill_gallery(viewer.on, top.assign(row=[3, 4]), [("", "cannot be read"), ("", "a word <i>")])
    assert viewer.on.gallery.options == (
        ("cannot be read 1.00 implausible", 3),
        ("a word <i> 2.00", 4),
    )  # text in the browser
    assert "<i>" not in viewer.on.pictures.value and "url" not in viewer.on.pictures.value


def test_where_a_feature_fires_needs_the_encoder_and_says_so(viewer):
    plain = viewer.on.pictures.value
    viewer.on.where.value = True
    assert "synthetic" in viewer.on.pictures.value or "synthetic" in str(viewer.on.gallery.options)
    viewer.on.where.value = False
    assert viewer.on.pictures.value == plain
