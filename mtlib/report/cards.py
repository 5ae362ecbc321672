"""The viewer's pictures of one feature as HTML: every text that comes from data is escaped, images are data URLs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.report.text import escape_html, number, percent, shorten

THUMBNAIL = 132  # pixels
COLOURS = {"error": "#c8553d", "no_error": "#2a7f62", "refused": "#b08900", "failed": "#b08900"}
WORDS = {"error": "physical error", "no_error": "no error", "": "no verdict"}
LABELS = {1: ("implausible", "#c8553d"), 0: ("plausible", "#2a7f62"), -1: ("", "transparent")}

STYLE = """<style>
.mtv {font-family: var(--jp-ui-font-family, system-ui, sans-serif); color: var(--jp-ui-font-color1, #1f2328)}
.mtv h2 {font-size: 22px; font-weight: 600; line-height: 1.25; margin: 2px 0 6px; overflow-wrap: anywhere}
.mtv .muted {color: var(--jp-ui-font-color2, #6b7280); font-size: 12px; line-height: 1.45}
.mtv .over {color: var(--jp-ui-font-color2, #6b7280); font-size: 11px; letter-spacing: .06em; text-transform: uppercase}
.mtv .badge {display: inline-block; color: #fff; border-radius: 10px; padding: 1px 9px; font-size: 12px; margin-right: 6px}
.mtv .judges {display: flex; flex-direction: column; gap: 4px; margin: 4px 0 2px; font-size: 13px}
.mtv .judges .who {display: inline-block; width: 70px; color: var(--jp-ui-font-color2, #6b7280)}
.mtv .tiles {display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0 4px}
.mtv .tile {background: var(--jp-layout-color2, #f3f4f6); border-radius: 8px; padding: 6px 10px; min-width: 84px}
.mtv .tile b {display: block; font-size: 16px; font-weight: 600; line-height: 1.35}
.mtv .gallery {display: grid; grid-template-columns: repeat(auto-fill, minmax(126px, 1fr)); gap: 10px; margin: 4px 0}
.mtv figure {margin: 0; border-radius: 8px; overflow: hidden; background: var(--jp-layout-color2, #f3f4f6); min-width: 0}
.mtv figure .frame {display: flex; align-items: center; justify-content: center; aspect-ratio: 1; overflow: hidden;
  border-bottom: 3px solid transparent}
.mtv figure img {width: 100%; height: 100%; object-fit: contain; display: block; margin: 0}
.mtv figure .word {font-size: 14px; padding: 6px; text-align: center; overflow-wrap: anywhere}
.mtv figcaption {padding: 3px 7px 5px; font-size: 11.5px; display: flex; gap: 6px; justify-content: space-between}
.mtv .message {background: var(--jp-layout-color2, #f3f4f6); border-left: 4px solid #b08900; padding: 8px 12px; font-size: 13px}
.mtv-panel {border: 1px solid var(--jp-border-color2, #e0e3e8); border-radius: 10px; padding: 12px 14px}
.mtv-list select {font-family: var(--jp-code-font-family, monospace); font-size: 12px; line-height: 1.5}
.mtv-buttons button {text-align: left; font-size: 12px}
</style>"""


def png(image: Image.Image, size: int = THUMBNAIL) -> bytes:
    """PNG bytes of a thumbnail that fits into size x size pixels; smaller images keep their pixels."""
    copy = image.convert("RGB")
    copy.thumbnail((size * 2, size * 2), Image.Resampling.LANCZOS)  # twice, for dense screens
    buffer = io.BytesIO()
    copy.save(buffer, "PNG")
    return buffer.getvalue()


def badge(verdict: str) -> str:
    """A verdict as a coloured word."""
    return f'<span class="badge" style="background:{COLOURS.get(verdict, "#8a8f98")}">{escape_html(WORDS.get(verdict, verdict))}</span>'


def header(record: pd.Series, verdicts: pd.DataFrame, method: str) -> str:
    """What a feature is said to be: its name, each judge's phrase and verdict.

    Args:
        record:   the feature's line of browse.feature_table.
        verdicts: the feature's lines of verdicts.parquet, one per judge.
        method:   the method's name.
    """
    rows = [
        f'<div class="mtv-judge"><span class="who">{escape_html(v.judge)}</span>{badge(v.verdict)}'
        f"{escape_html(shorten(v.phrase, 200))} <span class='muted'>{escape_html(_remark(v))}</span></div>"
        for v in verdicts.itertuples()
    ]
    name = escape_html(shorten(record["phrase"], 160) or "(no name)")
    over = f'<div class="over">{escape_html(method)} · feature {int(record["feature"])}</div>'
    judges = "".join(rows) or '<span class="muted">No judge has looked at this feature.</span>'
    return f'<div class="mtv">{over}<h2 class="mtv-name">{name}</h2><div class="judges">{judges}</div></div>'


def _remark(verdict) -> str:
    parts = [shorten(verdict.category, 60)] if verdict.category else []
    if pd.notna(verdict.confidence):
        parts.append(f"confidence {number(float(verdict.confidence), 2)}")
    return " · ".join(parts + ([shorten(verdict.detail, 160)] if verdict.detail else []))


def tiles(record: pd.Series) -> str:
    """The key numbers of a feature; those that its run does not have are left out."""
    get = record.get
    values = [
        ("density", percent(get("density")), f"{number(get('n_active_test'))} test images"),
        ("error ratio", percent(get("error_ratio")), _error_remark(record)),
        ("max activation", number(get("max_activation")), f"mean {number(get('mean_activation'))}"),
        ("causal relevance", number(get("causal_relevance")), "change of the logit"),
        ("mono score", number(get("mono_score")), "1: one concept"),
        ("purity", percent(get("purity")), shorten(get("dominant_class") or "", 24)),
        (
            _cause_name(record),
            shorten(get("top_cause") or "", 24),
            f"{percent(get('top_cause_share'))} of the top images",
        ),
    ]
    shown = [v for v in values if v[1] not in ("–", "")]
    body = "".join(
        f'<div class="tile"><span class="muted">{escape_html(name)}</span><b>{escape_html(value)}</b>'
        f'<span class="muted">{escape_html(remark)}</span></div>'
        for name, value, remark in shown
    )
    return f'<div class="mtv"><div class="tiles">{body}</div></div>'


def _cause_name(record: pd.Series) -> str:
    """A feature is truly about a cause when the truth calls it so (`is_error`); else its top images are a mixture."""
    return "true cause" if record.get("is_error", (record.get("top_cause_share") or 0) >= 0.8) else "commonest cause"


def _error_remark(record: pd.Series) -> str:
    if not record.get("assessed", True):
        return "too few test images to assess"
    low, high = record.get("error_low"), record.get("error_high")
    between = "" if low is None or pd.isna(low) else f"{percent(low)} to {percent(high)}, "
    return f"{between}base {percent(record.get('base_rate'))}"


def gallery(top: pd.DataFrame, images: Sequence[bytes | str | None]) -> str:
    """The strongest images of a feature with their activation and label.

    Args:
        top:    lines of top_images.parquet, in order.
        images: for each the PNG bytes, the word of a row without an image, or None when the file cannot be read.
    """
    if len(top) == 0:
        return '<div class="mtv"><div class="message">This feature fires on no image of this split.</div></div>'
    cells = []
    for line, image in zip(top.itertuples(), images, strict=True):
        label, colour = LABELS[-1 if pd.isna(line.label) else int(line.label)]
        if isinstance(image, bytes):
            data = base64.b64encode(image).decode()
            body = f'<img src="data:image/png;base64,{data}" alt="{escape_html(line.path)}">'
        else:
            body = f'<span class="word">{escape_html(shorten("cannot be read" if image is None else image, 60))}</span>'
        cells.append(
            f'<figure class="mtv-image" title="{escape_html(line.path)}">'
            f'<div class="frame" style="border-color:{colour}">{body}</div>'
            f'<figcaption><b>{number(float(line.activation))}</b><span style="color:{colour}">{label}</span></figcaption></figure>'
        )
    return f'<div class="mtv"><div class="gallery">{"".join(cells)}</div></div>'


def histogram(edges: np.ndarray, counts: np.ndarray, marks: Sequence[float] = ()) -> str:
    """A feature's activations (where it fires) as bars, square-root height.

    Args:
        edges:  (bins + 1,) bin edges.
        counts: (bins,) rows per bin.
        marks:  activations to mark, e.g. of the images shown (those beyond the last bar are left out).
    """
    if counts.sum() == 0:
        return '<div class="mtv"><span class="muted">It never fires here.</span></div>'
    width, height, last = 420, 110, int(np.flatnonzero(counts)[-1]) + 1
    tops = np.sqrt(counts[:last] / counts.max()) * height  # (last,)
    step = width / last
    bars = "".join(
        f'<rect x="{i * step:.1f}" y="{height - h:.1f}" width="{max(step - 1, 1):.1f}" height="{h:.1f}" rx="1" fill="#4c78a8">'
        f"<title>{number(edges[i])} to {number(edges[i + 1])}: {int(counts[i])} rows</title></rect>"
        for i, h in enumerate(tops)
    )
    ticks = "".join(
        f'<line x1="{m / edges[last] * width:.1f}" x2="{m / edges[last] * width:.1f}" y1="{height + 2}" y2="{height + 8}" stroke="#c8553d"/>'
        for m in marks
        if m <= edges[last]
    )
    text = 'font-size="11" fill="currentColor" opacity=".7"'
    return (
        f'<div class="mtv"><svg viewBox="0 0 {width} {height + 24}" width="100%" style="max-width:{width}px" role="img">{bars}{ticks}'
        f'<text x="0" y="{height + 21}" {text}>0</text>'
        f'<text x="{width}" y="{height + 21}" text-anchor="end" {text}>{number(float(edges[last]))}</text></svg>'
        f'<div class="muted">{int(counts.sum()):,} test images on which it fires, by activation (heights: square root of the count); '
        "red: the images above.</div></div>"
    )


def message(text: str) -> str:
    """A sentence that something is missing or went wrong."""
    return f'<div class="mtv"><div class="message">{escape_html(text)}</div></div>'


def uploaded(image: bytes, said: dict) -> str:
    """The image that was labelled, what the classifier predicts, and how many features are present.

    Args:
        image: PNG bytes. said: what Labeler.label returned.
    """
    data = base64.b64encode(image).decode()
    found, probability = said["explanations"], said["probability"]
    errors = sum(d["verdict"] == "error" for d in found)
    predicted = f"{percent(probability)} implausible" if probability is not None else said["predicted"]
    text = f"{escape_html('Predicted: ' + predicted + '. ') if predicted else ''}{len(found)} features are present, {errors} of them called a physical error. Click one to see it."
    return (
        f'<div class="mtv"><figure style="width:180px"><div class="frame"><img src="data:image/png;base64,{data}" alt="your image"></div>'
        f'</figure><div class="muted" style="margin-top:4px">{text}</div></div>'
    )
