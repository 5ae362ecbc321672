"""Text from data shows as what it is, in Markdown, HTML and figures."""

import mistune
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from matplotlib.figure import Figure

from mtlib.report.text import (
    escape_figure,
    escape_html,
    escape_markdown,
    interval,
    markdown_table,
    markdown_templates,
    number,
    one_line,
    percent,
    shorten,
    templates,
)

HOSTILE = [
    "<script>alert(1)</script>",
    r"$\unknown$ costs $5",
    "a|b",
    "[x](http://y) ![i](j)",
    "extra fingers [six] *b* __c__ _d_ a_b `e`",
    "1. x",
    "- x",
    "# h",
    "line\nbreak\ttab",
    "&amp; <b>",
]
render = mistune.create_markdown(plugins=["table", "strikethrough", "url"], escape=False)


def plain(html: str) -> str:
    """Text content of an HTML fragment."""
    from html.parser import HTMLParser

    parser, parts = HTMLParser(), []
    parser.handle_data = parts.append
    parser.feed(html)
    parser.close()
    return "".join(parts)


@pytest.mark.parametrize("text", HOSTILE)
def test_escape_markdown_shows_the_text_literally(text):
    html = render(escape_markdown(text))
    assert plain(html).strip() == one_line(text)
    assert set(html.replace("<p>", "").replace("</p>", "").replace("<span>$</span>", "").strip()) & {"<"} == set()


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>$*_`|[]()#+-.!~:@&\\ abx1\n"), max_size=30))
def test_escape_markdown_of_any_text_makes_no_tags(text):
    html = render("x " + escape_markdown(text) + " y").replace("<span>$</span>", "$")
    assert plain(html).split() == f"x {one_line(text)} y".split()
    assert html.strip().removeprefix("<p>").removesuffix("</p>").count("<") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_table_cell_keeps_hostile_text_in_its_cell(text):
    html = render(markdown_table(pd.DataFrame({"name": [text], "n": [3]})))
    assert html.count("<td") == 2 and "<script" not in html
    assert one_line(text).split() == plain(html.split("<td>")[1].split("</td>")[0]).split()


def test_escape_figure_draws_a_dollar_sign():
    figure = Figure()
    figure.text(0.5, 0.5, escape_figure(r"$\unknown$"))
    figure.canvas.draw()  # unescaped, matplotlib refuses this


def test_escape_html_quotes_attributes():
    assert escape_html('"><img onerror=x>') == "&quot;&gt;&lt;img onerror=x&gt;"


def test_one_line_makes_line_breaks_visible():
    assert one_line("a\nb") == r"a\nb"


def test_number_writes_three_digits():
    values = [0.12345, 12.345, 1234567, np.int64(12), 1e-6, float("nan"), None, True, 0.0]
    expected = ["0.123", "12.3", "1,234,567", "12", "1.00e-06", "–", "–", "yes", "0.000"]
    assert [number(v) for v in values] == expected


def test_nothing_is_minus_zero():
    assert number(-0.0) == "0.000" and percent(-0.0004) == "0.0%" and percent(0.9746) == "97.5%"


def test_interval_leaves_out_what_is_missing():
    assert interval(0.5, 0.25, 0.75) == "50.0% [25.0%, 75.0%]"
    assert interval(0.5, np.nan, np.nan) == "50.0%"
    assert percent(None) == "–"


def test_shorten_ends_in_an_ellipsis():
    assert shorten("abcdef", 4) == "abc…" and shorten("abc", 4) == "abc"


def test_markdown_table_says_how_many_rows_it_cut():
    text = markdown_table(pd.DataFrame({"a": range(5)}), max_rows=2)
    assert "2 of 5 rows" in text and text.count("\n|") == 3


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.sampled_from("<>$*_`|[]()#+-.!~:@&\\ abx1\n\"'"), max_size=30))
def test_a_value_in_a_template_is_text_whatever_it_holds(text):
    page = markdown_templates().from_string("x {{ value }} {% set b = value %}{{ b ~ '' }} y {{ number }}")
    html = render(page.render(value=text, number=0.5)).replace("<span>$</span>", "$")
    assert plain(html).split() == f"x {one_line(text)} {one_line(text)} y 0.500".split()
    assert html.strip().removeprefix("<p>").removesuffix("</p>").count("<") == 0
    part = templates(escape_html).get_template("viewer.html.j2").module.message(text)
    assert plain(part).strip() == one_line(text).strip() and part.count("<") == 4


def test_a_template_that_prints_what_is_missing_fails():
    with pytest.raises(UndefinedError, match="missing"):
        markdown_templates().from_string("{{ missing }}").render()
