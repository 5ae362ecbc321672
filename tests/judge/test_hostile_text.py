"""A model's hostile words, from the HTTP reply to the table, the records, the report and the viewer: always text."""

import json
import re

import mistune
import pandas as pd
import pytest

from mtlib import plots
from mtlib.ask.interview import plan_jobs
from mtlib.ask.questions import CATEGORIES
from mtlib.judge import agreement, lmm, records
from mtlib.judge import verdicts as every_judge
from mtlib.judge.settings import JudgeConfig
from mtlib.report import browse, build
from mtlib.report.reader import Reader
from mtlib.report.text import escape_markdown
from mtlib.report.widgets import HTML
from mtlib.run.stage import Stage
from tests.ask.lmm_server import LmmServer
from tests.judge.planted import interview, planted_data

PHRASES = [
    "<script>alert(1)</script>",
    r"$\unknown$ and $x$",
    "[click](javascript:alert(1)) **bold** `code` | cell | # head",
    '"><img src=x onerror=alert(1)>',
    "line one\nline two\r\n- a list\n\n## a heading",
    "\u202eright to left\u202c \u0007 bell",
    "six fingers [six] " * 4000,
    "😀 سلام {shown} {0} %s \\n \\u0000",
    "\x1b]52;c;aGk=\x07 copied \x1b[2J \x9b31m \x1bPq\x1b\\",
    "=cmd|' /C calc'!A0",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose 06 holds a model's hostile answers, asked over HTTP; its path and verdicts."""
    from tests.judge.small_run import write_small_run

    folder = tmp_path_factory.mktemp("hostile")
    run = write_small_run(folder / "run", n=300)
    stage = Stage("06_interpret", str(run))
    source = stage.input("05_features") / "features" / "tc"
    features = {"tc": pd.read_parquet(source / "features.parquet")}
    tops = {"tc": pd.read_parquet(source / "top_images.parquet")}
    jobs, left = plan_jobs(features, tops, n_images=4)
    (folder / "images").mkdir()
    data = planted_data(folder / "images", n=300)  # other pictures: the run's own have made-up hashes

    def hostile(ask):
        phrase = PHRASES[int(ask.number) % len(PHRASES)]
        said = {"phrase": phrase, "description": phrase, "confidence": 1, "has_error": True, "category": phrase}
        return json.dumps(said)

    with LmmServer(hostile, keep=False) as server:
        talk = interview(server, data, folder / "ledger.sqlite", concurrency=1)
        judged = lmm.by_model(features, jobs, left, talk)
        talk.asker.close()
    out = stage.out / "explanations" / "tc"
    verdicts = pd.concat([judged.verdicts["tc"], every_judge.by_truth(features["tc"])], ignore_index=True)
    records.write(out, verdicts, tops["tc"], JudgeConfig(judge="lmm"))
    none = pd.DataFrame(columns=["method", "reason"])
    lines = agreement.against_truth({"tc": verdicts}, features, {}, none)
    stage.table(lines, "judges")
    stage.table(judged.verdicts["tc"], "said", "What it said.", {"feature": "feature", "phrase": "phrase"})
    stage.table(pd.DataFrame([{"method": "tc", "assessed": 5, "answered": 5, "unasked": 1}]), "answers")
    usage = {"model": PHRASES[0], "answers": 5, "tokens_in": 7, "tokens_out": 8, "usd": 0.5}
    stage.table(pd.DataFrame([usage]), "usage", "What it took.", {"model": "model", "answers": "answers"})
    stage.finish(judge="lmm")
    return run, judged.verdicts["tc"]


def dangerous(html: str) -> list[str]:
    return re.findall(r"<script|<img src=x|href=.javascript|onerror=(?!alert\(1\)&)", html)


def test_verdicts_hold_every_hostile_phrase_as_it_was_within_bounds(run):
    _, verdicts = run
    said = verdicts.loc[verdicts["verdict"] == "error", "phrase"]
    assert len(said) >= 8 and said.str.len().max() <= 300
    assert {"<script>alert(1)</script>", r"$\unknown$ and $x$"} <= set(said)
    assert set(verdicts.loc[verdicts["verdict"] == "error", "category"]) <= set(CATEGORIES)


def test_records_read_back_as_they_were_written(run):
    folder = run[0] / "06_interpret-interactive" / "explanations" / "tc"
    lines = (folder / "error_analysis.jsonl").read_text(encoding="utf-8").split("\n")
    read = [json.loads(line) for line in lines[:-1]]
    assert len(read) == run[1]["verdict"].isin(every_judge.RULED).sum()
    assert [r["commonality"] for r in read] == run[1].loc[run[1]["verdict"] == "error", "phrase"].tolist()


def test_report_shows_it_as_text(run, tmp_path):
    build.build(run[0], tmp_path)
    text = "\n\n".join((tmp_path / page).read_text(encoding="utf-8") for page in build.PAGES)
    html = mistune.create_markdown(plugins=["table"], escape=False)(text)
    assert dangerous(html) == [] and "&lt;script&gt;" in html
    shown = mistune.html("| a |\n|---|\n| " + escape_markdown(PHRASES[2]) + " |")
    assert "<strong>" not in shown and "<code>" not in shown and "<a " not in shown


def test_no_page_or_table_holds_a_formula_or_what_a_terminal_acts_on(run, tmp_path):
    build.build(run[0], tmp_path)
    pages = [*tmp_path.rglob("*.md"), *run[0].rglob("*.csv")]
    assert any("x1b]52;c;aGk=" in page.read_text(encoding="utf-8") for page in pages)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not set(text) & set("\x1b\x07\x9b\u202e"), page
        assert page.suffix != ".csv" or not re.search(r"(^|[,\"])=", text, re.MULTILINE), page


def test_viewer_shows_it_as_text(run):
    reader = Reader.of_run(run[0])
    table, verdicts = browse.feature_table(reader, "tc"), reader.verdicts("tc")
    html = "".join(
        HTML.header(row.to_dict(), verdicts[verdicts["feature"] == f].to_dict("records"), "tc")
        for f, row in table.iterrows()
    )
    assert dangerous(html) == [] and "&lt;script&gt;" in html
    assert browse.judges_of(reader, verdicts)[0] == "lmm"


def test_notebook_tables_show_it_as_text(run):
    plots.use_style()
    with pd.option_context("display.max_colwidth", None):
        html = run[1]._repr_html_()
    assert dangerous(html) == [] and "&lt;script&gt;" in html and "tex2jax_ignore" in html
