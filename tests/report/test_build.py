"""The pages of a run: every number from the tables, every text escaped, every link there, nothing twice."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mistune
import numpy as np
import pandas as pd
import pytest

from mtlib.embed.store import open_run
from mtlib.report import browse, build, relevance_tables
from mtlib.report.reader import Reader
from mtlib.report.text import interval
from mtlib.run import artifacts
from mtlib.run.stage import Stage
from mtlib.truth.tables import by_method
from tests.report.synthetic_run import HOSTILE, draw

render = mistune.create_markdown(plugins=["table"], escape=False)
LINK = re.compile(r"\]\(([^)]+)\)")


def published(run: Path, folder: Path, remark: str = "", left_out: dict | None = None) -> tuple[Reader, Path]:
    """A run with 07 added, and its report: figures, tables and collages copied, the pages written."""
    shutil.copytree(run, folder / "demo")
    stage = Stage("07_results", str(folder / "demo"), params={"remark": remark})
    reader = Reader.of_stage(stage)
    if reader.has("labels"):
        long = relevance_tables.relevance_long(reader)
        stage.table(
            relevance_tables.relevance_wide(reader, long),
            "relevance",
            "Shares.",
            {"method": "method"} | relevance_tables.HEADINGS,
        )
        draw(stage, "relevance_scores", long, "Shares with intervals.")
        draw(stage, "errors", relevance_tables.errors_found(reader, open_run(folder / "demo")), "The errors found.")
        draw(stage, "generators", relevance_tables.generator_ranking(open_run(folder / "demo")), "Failure rates.")
    stage.finish()
    for artifact, seconds, peak in (("01_embed", 12.0, 345), ("07_results", 3.4, 200)):  # as the pipeline adds them
        of_stage = artifacts.open_run(folder / "demo")[artifact]
        timed = artifacts.read_meta(of_stage) | {"seconds": seconds, "peak_mb": peak}
        artifacts.write_record(of_stage / "meta.json", timed)
        artifacts.set_current(folder / "demo", artifact, of_stage.name)
    artifacts.write_record(folder / "demo/left_out.json", left_out or {})
    report, reader = folder / "report", Reader.of_run(folder / "demo")
    for artifact in reader.folders.values():
        for kind in ("figures", "tables"):
            if (artifact / kind).is_dir():
                shutil.copytree(artifact / kind, report / kind, dirs_exist_ok=True)
        for collages in artifact.glob("features/*/collages"):
            shutil.copytree(collages, report / "collages" / collages.parent.name)
    build.build(folder / "demo", report)
    return reader, report


@pytest.fixture(scope="module")
def labelled(run, tmp_path_factory):
    return published(run, tmp_path_factory.mktemp("labelled"), "50 photographs <b>of ours</b>")


@pytest.fixture(scope="module")
def arrays(unlabelled, tmp_path_factory):
    return published(unlabelled, tmp_path_factory.mktemp("arrays"), left_out={"02_classify": "it needs labels <b>"})


def page(report: Path, name: str = "README.md") -> str:
    return (report / name).read_text(encoding="utf-8")


def section(text: str, start: str) -> str:
    """The part of a page under the heading that starts so; "" when it has none."""
    parts = re.split(r"^## ", text, flags=re.M)
    return next((p for p in parts if p.startswith(start)), "")


def test_first_page_is_short(labelled, arrays):
    for _, report in (labelled, arrays):
        text = page(report)
        assert len(re.sub(r"[|*#\-]+", " ", text).split()) < 1200 and len(re.findall(r"!\[", text)) <= 7
        answer = text.split("**Answer.**")[1].split("\n\n")[0]
        assert 5 < len(answer.split()) <= 100


def test_numbers_are_those_of_the_tables(labelled):
    reader, report = labelled
    text = page(report)
    answer = text.split("**Answer.**")[1].split("\n\n")[0]
    row = reader.table("07_relevance").sort_values("enriched").iloc[-1]
    assert interval(row["enriched"], row["enriched_low"], row["enriched_high"]) in section(
        text, "How much of each method"
    )
    ranking = reader.table("07_generators").sort_values("rank")
    for generator in (ranking.iloc[0], ranking.iloc[-1]):
        assert f"{generator['generator']} " in answer and f"{100 * generator['corrected_rate']:.1f}% [" in answer
    found = by_method(reader.table("04_causes")).iloc[0]
    assert (
        f"{found['found']} of {found['causes']} known errors have a feature of their own, by {found['who']}" in answer
    )
    errors, listed = reader.table("07_errors"), section(text, "The errors found")
    assert len(errors) > 0
    for one in errors.itertuples():
        assert f"| {one.error.replace('_', ' ')} |" in listed and f"(#{one.feature})" in listed
    methods = section(text, "The methods")
    means = reader.table("04_causes").groupby("method")["ap"].mean()
    assert all(f"{means[m]:.3f} [" in methods or f"{means[m]:.2f} [" in methods for m in means.index)


def test_every_link_leads_somewhere(labelled, arrays):
    for reader, report in (labelled, arrays):
        for name in build.PAGES:
            for target in LINK.findall(page(report, name)):
                file, _, anchor = target.partition("#")
                if file.startswith("notebooks/"):
                    assert re.fullmatch(r"notebooks/\w+\.(html|ipynb)", file)
                elif file and file != "http&#58;//x":
                    assert (report / file).is_file(), target
                if anchor:
                    assert f'<a id="{anchor}"></a>' in page(report, file or name)
        assert set(reader.folders) >= {
            t.removeprefix("#") for t in LINK.findall(page(report, "appendix.md")) if t.startswith("#0")
        }


def test_every_declared_figure_and_table_stands_on_one_page_with_its_caption(labelled):
    reader, report = labelled
    both = page(report) + page(report, "appendix.md")
    for stage in reader.folders:
        for item in build.declared(reader, stage):
            if item["kind"] == "figure":
                assert both.count(f"](figures/{item['name']}.png)") == 1
            if item["kind"] != "say":
                assert f"(tables/{item['name']}.csv)" in both
    plain = re.sub(r"<[^>]+>", "", render(both))
    captions = [i["caption"] for s in reader.folders for i in build.declared(reader, s) if i["name"] != "04_metrics"]
    assert len(captions) > 8 and all(c.replace("<", "&lt;").replace(">", "&gt;") in plain for c in captions)


def test_a_table_shows_the_columns_of_its_headings_and_no_others(labelled):
    card = section(page(labelled[1], "appendix.md"), "01_embed")
    assert "| family | cause | probe AUROC |" in card and "zero_shot" not in card


def test_coders_of_x_and_of_y_never_share_a_table(labelled):
    text = section(page(labelled[1], "appendix.md"), "04_evaluate")
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.M)
    own = [t for t in tables if "FVU" in t]
    assert len(own) == 2 and not any("| sae |" in t and "| matryoshka_transcoder |" in t for t in own)
    assert "FVU" not in section(page(labelled[1]), "The methods")


def test_hostile_names_show_literally_and_harmlessly(labelled, arrays):
    for _, report in (labelled, arrays):
        for name in build.PAGES:
            html = render(page(report, name))
            assert "<script" not in html and 'href="http://x"' not in html and "$\\unknown$" not in html
    shown = re.sub(r"<[^>]+>", "", render(page(labelled[1], "appendix.md")))
    assert HOSTILE.replace("<", "&lt;").replace(">", "&gt;") in shown
    assert "<b>" not in page(labelled[1]) + page(arrays[1])


def test_pages_are_the_same_twice_and_name_no_machine_path(labelled):
    reader, report = labelled
    before = [page(report, name) for name in build.PAGES]
    build.build(reader.run_dir, report)
    assert before == [page(report, name) for name in build.PAGES]
    assert not any("/tmp" in text or str(Path.home()) in text for text in before)


def test_without_labels_nothing_is_judged_and_what_was_left_out_is_said(arrays):
    reader, report = arrays
    text = page(report)
    for heading in ("The errors found", "How much of each method", "Are the judges right", "Which generator"):
        assert section(text, heading) == ""
    left = section(page(report, "appendix.md"), "Left out")
    assert "02_classify" in left and "needs the classifier's hidden layer y" in text and "02_classify" in text
    assert reader.methods()[0] in text.split("**Answer.**")[1].split("\n\n")[0]
    assert "nan" not in text.lower().split()


def test_sections_that_were_left_out_are_grouped_by_reason(labelled, tmp_path):
    reader, _ = labelled
    copy = shutil.copytree(reader.run_dir, tmp_path / "demo")
    stage = Stage("08_more", str(copy))
    lines = [{"title": t, "needs": ["tower"], "reason": "it needs a text tower"} for t in ("Names", "Search")]
    artifacts.write_record(stage.out / "skipped.json", {"skipped": lines})
    stage.finish()
    build.build(copy, tmp_path / "report")
    left = section(page(tmp_path / "report", "appendix.md"), "Left out")
    assert left.lower().count("it needs a text tower") == 1 and "Names" in left and "Search" in left


def test_gallery_shows_error_features_or_else_the_most_active_ones(labelled, monkeypatch):
    reader = labelled[0]
    shown = browse.gallery(reader, 3)
    assert all(s["error"] and s["verdict"] == "error" for s in shown) and len({s["top_cause"] for s in shown}) == len(
        shown
    )
    every = Reader.collages
    errors = {m: set(browse.error_features(reader, m)["feature"]) for m in reader.methods()}
    monkeypatch.setattr(
        Reader, "collages", lambda self, m: {f: p for f, p in every(self, m).items() if f not in errors[m]}
    )
    shown = browse.gallery(reader, 3)
    assert shown and not any(s["error"] for s in shown)


def test_a_judge_of_too_few_features_is_not_scored():
    line = {"method": "m", "n_error": 40, "n_truth": 30, "precision": 0.5, "recall": 0.5, "f1": 0.5, "kappa": 0.5}
    few = line | {"judge": "few", "n_error": 9}
    enough = line | {"judge": "enough"}
    frame = pd.DataFrame([one | {"captioned": c} for one in (few, enough) for c in ("all", "uncaptioned")])
    frame = pd.concat([frame, pd.DataFrame([line | {"judge": "truth", "captioned": "all"}])])
    out = build.judge_scores(frame).set_index("judge")
    assert out.index.tolist() == ["few", "enough"]
    assert out.loc["few", ["precision", "recall", "f1", "kappa"]].isna().all() and out.loc["enough", "f1"] == 0.5
    assert out.loc["enough", "recall_uncaptioned"] == 0.5


def test_a_run_whose_words_were_at_chance_says_so_first(labelled, tmp_path, monkeypatch):
    reader, _ = labelled
    facts = Reader.facts
    said = {
        "01_embed": {"told": "It has only ever seen drawings."},
        "06_interpret": {"unnamed": "words are chance"},
    }
    monkeypatch.setattr(Reader, "facts", lambda self, s: facts(self, s) | said.get(s, {}))
    build.build(reader.run_dir, tmp_path)
    head = page(tmp_path).split("**Answer.**")[0]
    assert "only ever seen drawings" in head and "Features have no names: words are chance." in head
    assert "only ever seen drawings" in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_an_aimed_l0_of_all_latents_is_none():
    frame = pd.DataFrame({"method": ["a", "b"], "target": "x", "l0_target": [8.0, 64.0], "n_latents": 64})
    keys = list(build.fair(frame.assign(matched="matched", fvu=0.5)))
    assert keys[0] == ("x", 8.0) and np.isnan(keys[1][1])
