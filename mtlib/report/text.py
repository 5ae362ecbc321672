"""Text from data made safe for Markdown, HTML and figures; frames as Markdown tables; templates that escape by themselves.

File names, phrases and answers of a language model are data: `<script>`, `$x$`, `[a](b)` or a line break in them must
show as what they are, on GitHub, in Jupyter and in matplotlib. In a template every value that is printed is escaped,
whether its author thought of it or not; only a macro or a filter that made the markup itself is left as it is.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mtlib.run.artifacts import one_line

# "$" goes into a span of its own: GitHub and MathJax look for pairs of it within one run of text, also after entities.
MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "\\`*|~@"} | {"$": "<span>$</span>"})
EDGE_UNDERSCORE = re.compile(r"(?<![^\W_])_+|_+(?![^\W_])")  # inside a word it is no markup
LINK = re.compile(r"\](?=[(\[:])")  # "[a](b)", "[a][b]", "[a]:"; any other bracket stays one
COLON = re.compile(r":(?=\S)")  # ":smile:", "http://"
START = re.compile(r"^(\s*)([-+=#]|\d+(?=[.)](\s|$)))")  # what would start a list, a heading or an underline


def escape_html(text) -> str:
    """Text for HTML content or a quoted attribute, on one line."""
    return html.escape(one_line(text), quote=True)


def escape_markdown(text) -> str:
    """Text for Markdown prose or a table cell: no markup, link, HTML, mathematics or table separator comes of it."""
    line = html.escape(one_line(text), quote=False).translate(MARKDOWN)
    line = EDGE_UNDERSCORE.sub(lambda found: "&#95;" * len(found.group()), line)
    line = LINK.sub("&#93;", line)
    line = COLON.sub("&#58;", line)
    return START.sub(lambda found: found.group(1) + "".join(f"&#{ord(c)};" for c in found.group(2)), line)


def escape_figure(text) -> str:
    """Text for a matplotlib label: a dollar sign is a dollar sign."""
    return one_line(text).replace("$", r"\$")


def shorten(text, length: int = 60) -> str:
    """The text on one line, cut to at most `length` characters with an ellipsis."""
    line = one_line(text)
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


def number(value, digits: int = 3) -> str:
    """A number for people: integers with thousands separators, else `digits` significant digits; "–" when missing."""
    if value is None or value is pd.NA or not np.isfinite(value):
        return "–"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}"
    rounded = float(f"{value:.{digits - 1}e}")
    value = value if rounded else 0.0  # never -0.000
    if rounded != 0 and not 1e-3 <= abs(rounded) < 1e5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0) if rounded else digits}f}"


def percent(value) -> str:
    """A share as a percentage with one digit after the point; "–" when missing."""
    return "–" if pd.isna(value) else f"{round(100 * float(value), 1) + 0.0:.1f}%"  # + 0.0: never -0.0%


def interval(value, low, high, show=percent) -> str:
    """A value with its interval: "34.7% [30.1%, 39.4%]"."""
    return show(value) if pd.isna(low) or pd.isna(high) else f"{show(value)} [{show(low)}, {show(high)}]"


def markdown_table(frame: pd.DataFrame, columns: Mapping[str, str] | None = None, max_rows: int = 40) -> str:
    """A frame as a Markdown table, every cell escaped: numbers by `number`, everything else as text.

    Args: columns: column -> heading, in order; those that the frame lacks are left out. None: all.
    """
    shown = {c: h for c, h in (columns or dict(zip(frame, frame, strict=True))).items() if c in frame}
    if frame.empty or not shown:
        return "*No rows.*"
    numeric = {c: pd.api.types.is_numeric_dtype(frame[c]) and frame[c].dtype != bool for c in shown}
    lines = ["| " + " | ".join(escape_markdown(h) for h in shown.values()) + " |"]
    lines += ["|" + "|".join("---:" if numeric[c] else "---" for c in shown) + "|"]
    for record in frame.head(max_rows)[list(shown)].to_dict("records"):
        cells = [escape_markdown(v) if isinstance(v, str) else number(v) for v in record.values()]
        lines.append("| " + " | ".join(cells) + " |")
    if len(frame) > max_rows:
        lines += ["", f"*The first {max_rows} of {len(frame)} rows; the whole table is in `tables/`.*"]
    return "\n".join(lines)


def templates(escape: Callable[[object], str]) -> Environment:
    """The templates of this folder. Args: escape: makes a printed value safe; values that are markup pass as they are."""
    loader = FileSystemLoader(Path(__file__).parent)
    look = dict(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined)
    found = Environment(loader=loader, autoescape=True, extensions=["jinja2.ext.do"], **look)
    found.finalize = lambda value: value if hasattr(value, "__html__") else Markup(escape(value))
    found.filters |= {"number": number, "percent": percent, "shorten": shorten, "interval": interval}
    return found


def markdown_templates() -> Environment:
    """Templates of Markdown: numbers are written by `number`, everything else is text; `| table` makes a table."""
    numbers = (int, float, np.number, np.bool_, type(None), type(pd.NA))
    found = templates(lambda value: number(value) if isinstance(value, numbers) else escape_markdown(value))
    found.filters["table"] = lambda *args, **more: Markup(markdown_table(*args, **more))
    return found
