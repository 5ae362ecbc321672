"""The report: every number from the tables, every text escaped, every skipped section with its reason."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mistune
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mtlib import plots
from mtlib.measure import compare
from mtlib.measure.reconstruction import definition_card
from mtlib.report import findings, labels, measures, results
from mtlib.report.reader import Reader
from mtlib.report.report import report_markdown, write_report
from mtlib.run.stage import Stage
from tests.report.synthetic_run import HOSTILE

render = mistune.create_markdown(plugins=["table"], escape=False)


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Reader:
    """The run with the tables of 07 that need no encoder."""
    copy = tmp_path_factory.mktemp("reports") / "demo_like"
    shutil.copytree(run, copy)
    return with_results(copy)


def with_results(run_dir: Path) -> Reader:
    """Write 07's tables of relevance and its README; return a reader that sees them."""
    stage = Stage("07_results", str(run_dir))
    reader = Reader.of_stage(stage)
    long = results.relevance_long(reader)
    plots.table(stage, results.relevance_wide(reader, long), "relevance")
    plots.table(stage, pd.DataFrame([{"generator": "", "reason": "no images of generators"}]), "generators")
    plots.table(stage, pd.DataFrame([{"image": "", "reason": "no encoder"}]), "labels")
    write_report(stage)
    return reader


def test_report_has_every_section_once_and_in_order(finished):
    text = report_markdown(finished)
    headings = re.findall(r"^## (.*)$", text, re.M)
    assert len(headings) == len(set(headings)) == 15
    assert headings[0] == "What the features show" and headings[-1] == "Times"
    assert text.rstrip().endswith("<!-- timings -->\n<!-- /timings -->")


def test_the_most_active_features_are_shown_where_no_error_feature_has_a_picture(finished, monkeypatch):
    assert "Error features, most certain first" in findings.features(finished)
    every = Reader.collages
    errors = {m: set(results.error_features(finished, m, n=10_000)["feature"]) for m in finished.methods()}
    others = lambda self, m: {f: p for f, p in every(self, m).items() if f not in errors[m]}  # noqa: E731
    monkeypatch.setattr(Reader, "collages", others)
    left = sum(len(finished.collages(m)) for m in finished.methods())
    text = findings.features(finished)
    assert text.startswith("Features, most active first" if left else "No collage to show")
    assert text.count("![feature") == min(left, 6) > 0


def test_report_numbers_are_those_of_the_tables(finished):
    text = report_markdown(finished)
    accuracy = finished.table("02_metrics")["accuracy"].iloc[0]
    assert f"{100 * accuracy:.1f}%" in text.split("\n## ")[0]
    row = finished.table("07_relevance").set_index("method").loc["sae"]
    assert f"{100 * row['enriched']:.1f}% [{100 * row['enriched_low']:.1f}%, {100 * row['enriched_high']:.1f}%]" in text
    causes = finished.table("04_causes")
    worst = causes.groupby("cause")["auroc"].mean().min()
    assert f"Hardest is hand_error, on average {worst:.3f} against a ceiling of 0.990" in text


def test_report_shows_hostile_names_literally_and_harmlessly(finished):
    text = report_markdown(finished)
    html = render(text)
    assert "<script" not in html and 'href="http://x"' not in html and "$\\unknown$" not in html
    shown = re.sub(r"<[^>]+>", "", html)
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in shown


def test_report_links_only_to_what_is_published(finished):
    text = report_markdown(finished)
    folders = list(finished.folders.values())
    for target in re.findall(r"\]\(([^)]+)\)", text.replace("http&#58;", "")):
        kind = target.split("/")[0]
        if kind in ("figures", "tables"):
            assert any((f / target).is_file() for f in folders), target
        elif kind == "collages":
            _, method, name = target.split("/")
            assert (finished.folders["05_features"] / f"features/{method}/collages/{name}").is_file()
        else:
            assert re.fullmatch(r"notebooks/0\d_\w+\.(html|ipynb)", target), target


def test_report_is_the_same_twice_and_names_no_machine_path(finished):
    text = report_markdown(finished)
    assert text == report_markdown(finished)
    assert text == (finished.folders["07_results"] / "README.md").read_text(encoding="utf-8")
    assert "/tmp" not in text and str(Path.home()) not in text


def test_report_without_labels_says_why_sections_are_skipped(unlabelled, tmp_path):
    shutil.copytree(unlabelled, tmp_path / "arrays")
    text = report_markdown(with_results(tmp_path / "arrays"))
    assert "**Answer.** Nothing can be said about physical errors" in text
    assert "there is nothing to judge errors against" in text
    assert "needs the classifier's hidden layer y" in text
    assert text.startswith("# What do the features of this image model stand for? Run `arrays`")
    assert "## Physical errors\n\nSkipped: " in text and "## Which generator fails most?" not in text
    assert text.count("Skipped:") == 3 and "nan" not in text.lower().split()


def test_report_of_few_photographs_claims_no_cause(run, tmp_path):
    shutil.copytree(run, tmp_path / "photos")
    reader = with_results(tmp_path / "photos")
    facts = reader.facts
    reader.facts = lambda stage: facts(stage) | ({"source": "images"} if stage == "01_embed" else {})
    text = report_markdown(reader)
    assert "may track where an image came from" in text and "No cause is claimed" in text
    assert "one split says little" in text


def test_relevance_wide_has_one_line_per_method_with_reasons(finished, unlabelled):
    wide = finished.table("07_relevance")
    assert wide["method"].tolist() == ["matryoshka_transcoder", "sae"]
    assert (wide["threshold"] == wide["threshold_n"] / wide["n_latents"]).all()
    assert (wide["enriched_low"] <= wide["enriched"]).all() and (wide["reason"] == "").all()
    stage = Stage("08_scratch", str(unlabelled))
    reader = Reader.of_stage(stage)
    wide = results.relevance_wide(reader, results.relevance_long(reader))
    assert (wide["status"] == "skipped").all() and wide["reason"].str.len().gt(10).all()
    shutil.rmtree(stage.out)


def test_generator_ranking_is_corrected_and_beside_the_truth(run):
    from mtlib.embed.store import open_run

    data = open_run(run)
    assert results.why_no_generators(data) == ""
    frame = results.generator_ranking(data)
    assert {"generator", "n", "raw_rate", "corrected_rate", "low", "high", "true_rate", "rank", "true_rank"} <= set(
        frame
    )
    assert sorted(frame["rank"]) == [1, 2] and (frame["low"] <= frame["high"]).all()
    truth = data.truth[data.manifest["generator"] == "gen_a"]
    assert frame.set_index("generator").loc["gen_a", "true_rate"] == pytest.approx(truth["label"].mean())


def test_new_images_of_a_missing_folder_is_an_error(run, tmp_path):
    from mtlib.embed.store import open_run

    with pytest.raises(FileNotFoundError, match="label_images"):
        labels.new_images(open_run(run), "no/such/folder", tmp_path, 4)


def test_new_images_of_a_folder_are_its_readable_files(run, tmp_path):
    from mtlib.embed.store import open_run

    (tmp_path / "new" / "deep").mkdir(parents=True)
    for name in ("b.png", "deep/a.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "new" / name)
    (tmp_path / "new" / "notes.txt").write_text("no image")
    images, said = labels.new_images(open_run(run), "new", tmp_path, 2)
    assert len(images) == 2 and all(path.is_file() for _, path, _ in images)
    assert said == "2 images of the folder label_images"


def fair_run(folder: Path) -> Reader:
    """A run of 04 only: autoencoders with and without MonoLoss at two L0, three seeds; one unmatched, two without an aim."""
    stage = Stage("04_evaluate", str(folder))
    lines = []
    for method, l0, fvu, mono, flag in [
        ("topk_8", 8, 0.30, 0.2, "matched"),
        ("topk_mono_8", 8, 0.31, 0.6, "matched"),
        ("batch_8", 8, 0.35, 0.3, "matched"),
        ("relu_8", 8, 0.10, 0.2, "unmatched"),
        ("topk_32", 32, 0.20, 0.1, "matched"),
        ("topk_mono_32", 32, 0.21, 0.105, "matched"),
        ("msae", 64, 0.05, 0.1, "unmatched"),
        ("relu", np.nan, 0.04, 0.1, ""),
    ]:
        for seed in range(3):
            line = {"method": method, "seed": seed, "target": "x", "l0_target": l0, "matched": flag, "status": "ok"}
            line |= {"l0": l0, "fvu": fvu + 0.001 * seed, "mono_score": mono + 0.01 * seed, "n_latents": 64}
            line |= {"purity": mono, "purity_null": 0.1, "zero_shot_top1": 0.9, "zero_shot_drop": 100 * fvu}
            line |= {"n_purity": 40 if method == "topk_mono_8" else 50, "cknna_rows": 60}
            lines.append(line | {"n_parameters": 999, "n_assessed": 32, "reason": ""})
    frame = pd.DataFrame(lines)
    compared = compare.comparison(frame)
    plots.table(stage, frame, "metrics")
    plots.table(stage, compared, "comparison")
    plots.table(stage, compare.mono_pairs(compared), "monoloss")
    card = definition_card(np.eye(4), np.eye(4) * 0.9, batches=(2,))
    plots.table(stage, card.assign(method="topk_8", target="x"), "definitions")
    stage.finish()
    return Reader.of_stage(Stage("07_results", str(folder)))


def test_coders_are_ranked_within_one_target_and_l0_and_unmatched_ones_are_not(tmp_path):
    text = measures.coders(fair_run(tmp_path / "fair"))
    tables = re.findall(r"\*\*Autoencoders: .*?, L0 (\d+)\.\*\* ?(.*)\n\n((?:\|.*\n?)+)", text)
    assert [t[0] for t in tables] == ["8", "32"]
    assert "topk_8 leaves least of the target, FVU 0.301 [" in tables[0][1]  # relu_8 is lower, but unmatched
    assert "no other interval reaches it" in tables[0][1] and tables[1][1] == ""  # a method and its variant: no ranking
    assert text.count("no L0 aimed at") == 1 and "L0 64" not in text  # asked for all latents: nothing was aimed at
    assert tables[0][2].count("unmatched") == 1 and "Student's t" in text
    assert "MonoScore rises from 0.210 to 0.610; purity rises" in text and "FVU rises from 0.301 to 0.311" in text
    assert "loses 4.0 percentage points (relu) to 35.0 (batch_8)" in text
    assert "0.600 (topk_mono_8, over 40 of 64 latents; 0.100 when the classes are shuffled)" in text
    assert "CKNNA is of only 60 images" in text
    assert text.count("exact over the split (this repo)") == 2


def test_the_users_remark_stands_first_and_is_only_text(finished):
    lines = report_markdown(finished, "50 photographs <b>of ours</b>, S = 8 x the width").splitlines()
    assert lines[2].startswith("*50 photographs") and "<b>" not in lines[2]
    assert report_markdown(finished).splitlines()[2].startswith("**Answer.**")
