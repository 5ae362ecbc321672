"""Notebook 07's tables on a small run: shares with reasons, generators beside the truth, labels of new images."""

from __future__ import annotations

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib.embed.store import open_run
from mtlib.judge.new_images import errors_first, new_images
from mtlib.report import browse, figures, relevance_tables
from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table
from mtlib.run.stage import Stage, table_of, write_csv


@pytest.fixture(scope="module")
def reader(run) -> Reader:
    return Reader.of_run(run)


def test_relevance_wide_has_one_line_per_method(reader):
    wide = relevance_tables.relevance_wide(reader, relevance_tables.relevance_long(reader))
    assert wide["method"].tolist() == ["matryoshka_transcoder", "sae"]
    assert (wide["threshold"] == wide["threshold_n"] / wide["n_latents"]).all()
    assert (wide["enriched_low"] <= wide["enriched"]).all() and (wide["reason"] == "").all()


def test_a_method_that_was_skipped_keeps_its_line_and_reason(unlabelled):
    reader = Reader.of_run(unlabelled)
    wide = relevance_tables.relevance_wide(reader, relevance_tables.relevance_long(reader)).set_index("method")
    assert wide["status"].to_dict() == {"matryoshka_transcoder": "skipped", "sae": "ok"}
    assert "hidden layer y" in wide.loc["matryoshka_transcoder", "reason"]


def test_generator_ranking_is_corrected_and_beside_the_truth(run):
    data = open_run(run)
    frame = relevance_tables.generator_ranking(data)
    wanted = {"generator", "n", "raw_rate", "corrected_rate", "low", "high", "true_rate", "rank", "true_rank"}
    assert wanted <= set(frame) and sorted(frame["rank"]) == [1, 2] and (frame["low"] <= frame["high"]).all()
    truth = data.truth[data.manifest["generator"] == "gen_a"]
    assert frame.set_index("generator").loc["gen_a", "true_rate"] == pytest.approx(truth["label"].mean())


def test_error_features_fire_on_generators_and_none_give_an_empty_table(run, reader, monkeypatch):
    data, method = open_run(run), relevance_tables.first_with_errors(reader)
    frame = relevance_tables.generator_features(reader, data, method)
    shown = browse.error_features(reader, method).head(relevance_tables.N_SHOWN)
    assert set(frame["feature"]) == set(shown["feature"]) and set(frame["generator"]) == {"gen_a", "gen_b"}
    assert (frame["rate"] == frame["n_fired"] / frame["n"]).all()
    monkeypatch.setattr(relevance_tables, "error_features", lambda *_: shown.head(0))
    assert (
        relevance_tables.generator_features(reader, data, method).empty
        and relevance_tables.first_with_errors(reader) == method
    )


def test_errors_found_are_causes_where_they_are_known_and_else_error_features(run, reader, monkeypatch):
    data, known = open_run(run), reader.table("04_causes")
    found = relevance_tables.errors_found(reader, data)
    assert found["ap"].is_monotonic_decreasing and found["generator"].isin(["gen_a", "gen_b"]).all()
    own = known[(known["method"] == found["method"].iloc[0]) & known["found"]]
    assert dict(zip(found["error"], found["feature"], strict=True)) == dict(
        zip(own["cause"], own["ap_feature"], strict=True)
    )
    assert (found["least"] <= found["rate"]).all()
    fig = figures.errors_found(found, reader, data)
    assert len(fig.axes) >= len(found) and sum(bool(ax.images) for ax in fig.axes) > len(found)
    monkeypatch.setattr(Reader, "table", lambda *_: pd.DataFrame())
    found = relevance_tables.errors_found(reader, data)
    shown = browse.error_features(reader, relevance_tables.first_with_errors(reader))
    assert (
        found["feature"].tolist() == shown["feature"].tolist()
        and found["ap"].isna().all()
        and (found["error"] == "").all()
    )
    monkeypatch.setattr(relevance_tables, "error_features", lambda *_: shown.head(0))
    none = relevance_tables.errors_found(reader, data)
    assert none.empty and list(none) == relevance_tables.ERRORS and figures.errors_found(none, reader, data) is None


def test_null_has_a_line_for_each_method(run, reader):
    null = relevance_tables.null_table(reader, open_run(run))
    assert null["method"].tolist() == reader.methods() and (null["n_permutations"] == 200).all()


def test_new_images_of_a_missing_folder_is_an_error(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="label_images"):
        new_images(open_run(run), "no/such/folder", tmp_path, 4)


def test_new_images_of_a_folder_are_its_readable_files(run, tmp_path):
    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    images = new_images(open_run(run), "new", tmp_path, 2)
    assert len(images) == 2 and all(path.is_file() for _, path, _ in images)


def test_new_images_of_a_run_come_evenly_from_its_generators(run, unlabelled, tmp_path):
    data = open_run(run)
    images = new_images(data, "", tmp_path, 4)
    known = data.manifest.set_index("path")["generator"]
    assert known.loc[[name for name, _, _ in images]].value_counts().to_dict() == {"gen_a": 2, "gen_b": 2}
    assert new_images(open_run(unlabelled), "", tmp_path, 4) == []


def test_errors_come_first_then_activation():
    found = [("no_error", 9.0), ("error", 2.0), ("error", 5.0), ("no_error", 1.0)]
    ordered = errors_first([{"verdict": v, "activation": a, "logit_push": -a} for v, a in found])
    expected = [("error", 5.0), ("error", 2.0), ("no_error", 9.0), ("no_error", 1.0)]
    assert [(d["verdict"], d["activation"]) for d in ordered] == expected


def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path):
    folder = tmp_path / "04_evaluate"
    (folder / "tables").mkdir(parents=True)
    names = pd.DataFrame({"method": ["null", "007"], "fvu": [0.5, None]})
    names.to_csv(folder / "tables/04_metrics.csv", index=False)
    frame = Reader("r", {"04_evaluate": folder}).table("04_metrics")
    assert frame["method"].tolist() == ["null", "007"] and frame["fvu"].isna().tolist() == [False, True]


def test_names_that_look_like_nothing_or_like_numbers_come_back_as_they_were(tmp_path):
    names = ["NA", "null", "nan", "None", "", "01", "1", "1e3", "True", "_background_"]
    frame = pd.DataFrame({"family": names, "group": names, "share": [0.5, np.nan] * 5, "n": range(10)})
    frame["ids"] = ["01", "02"] * 5
    stage = Stage("01_embed", str(tmp_path))
    stage.table(frame, "classes", "Classes.", {"family": "family", "share": "share"})
    stage.finish()
    again = Reader("r", {"01_embed": stage.out}).table("01_classes")
    assert again["family"].tolist() == names and again["group"].fillna("").tolist() == names
    assert again["ids"].tolist() == frame["ids"].tolist() and again["share"].isna().tolist() == [False, True] * 5
    shown = markdown_table(again, {"family": "family", "share": "share"})
    assert all(f"| {name} |" in shown for name in ("NA", "null", "nan", "None", "01", "1", "1e3", "True"))


def test_texts_of_a_table_are_no_formulas_and_no_commands_to_a_terminal_and_numbers_stay_numbers(tmp_path):
    names = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "-2+3", "-1.5", "+3e2", "'=a", "'a", "a=b", "-inf", "＝1", "é 猫"]
    told = [
        "'=cmd|' /C calc'!A0",
        "'@SUM(1)",
        "'+1+1",
        "'-2+3",
        "-1.5",
        "+3e2",
        "''=a",
        "'a",
        "a=b",
        "-inf",
        "'＝1",
        "é 猫",
    ]
    frame = pd.DataFrame(
        {"family": names, "=kind": pd.Categorical(names), "n": -1.5, "k": -2, "mixed": [-1, None, "=a"] * 4}
    )
    stage = Stage("01_embed", str(tmp_path))
    stage.table(frame, "classes")
    stage.finish()
    with open(stage.out / "tables" / "01_classes.csv", encoding="utf-8", newline="") as f:
        head, *lines = csv.reader(f)
    assert head == ["family", "'=kind", "n", "k", "mixed"] and [line[0] for line in lines] == told
    assert lines[0][1:] == [told[0], "-1.5", "-2", "-1"] and [line[4] for line in lines[1:3]] == ["", "'=a"]
    again = table_of(stage.out, "01_classes")
    assert again["family"].tolist() == again["=kind"].tolist() == names and again["mixed"].tolist()[2] == "=a"
    assert again["n"].tolist() == [-1.5] * 12 and again["k"].tolist() == [-2] * 12
    write_csv(tmp_path / "a.csv", pd.DataFrame({"family": ["\x1b]52;c;aGk=\x07", "a\nb", "\t=1", "\x9b2J", "👩‍👧"]}))
    said = (tmp_path / "a.csv").read_text(encoding="utf-8")
    assert said == "family\n\\x1b]52;c;aGk=\\x07\na\\nb\n\\t=1\n\\x9b2J\n👩‍👧\n"
