"""The viewer's widgets and where they stand. What they do is in viewer.py."""

from __future__ import annotations

import ipywidgets as w

from mtlib.report import browse, cards

N_SIMILAR, N_LABELS = 6, 8
SPLITS = (("val: named from these", "val"), ("test: held out", "test"))
NAMED = "method judge sort descending search verdict min_density assessed count list previous next split header tiles"
NAMED = f"{NAMED} gallery histogram upload upload_preview".split()  # each has the CSS class mtv-<name>


class Controls:
    """Every widget of the viewer, as an attribute; `widget` is the whole.

    Args:
        methods: names to choose from; method: the one chosen first; run: the run's name.
    """

    def __init__(self, methods: list[str], method: str, run: str):
        fill = w.Layout(width="auto")
        self.method = w.Dropdown(options=methods, value=method, description="method", layout=fill)
        self.judge = w.Dropdown(options=["–"], description="judge", layout=fill)
        self.sort = w.Dropdown(
            options=list(browse.SORTS), description="sort by", layout=w.Layout(flex="1 1 auto", width="auto")
        )
        self.descending = w.ToggleButton(value=True, icon="arrow-down", layout=w.Layout(width="38px"))
        self.search = w.Text(
            placeholder="words in the name", description="search", continuous_update=False, layout=fill
        )
        verdicts = [("any", ""), *((v.replace("_", " "), v) for v in browse.VERDICTS)]
        self.verdict = w.Dropdown(options=verdicts, description="verdict", layout=fill)
        self.min_density = w.BoundedFloatText(min=0.0, max=1.0, step=0.001, description="density ≥", layout=fill)
        self.assessed = w.Checkbox(
            value=False, description="assessed only (≥ 10 test images)", indent=False, layout=fill
        )
        self.list = w.Select(options=[], rows=24, layout=fill)
        self.previous = w.Button(description="previous", icon="chevron-left", layout=w.Layout(width="49%"))
        self.next = w.Button(description="next", icon="chevron-right", layout=w.Layout(width="49%"))
        self.split = w.ToggleButtons(options=SPLITS, value="val", style={"button_width": "170px"})
        self.count, self.header, self.tiles = w.HTML(), w.HTML(), w.HTML()
        self.gallery, self.histogram, self.upload_preview = w.HTML(), w.HTML(), w.HTML()
        self.upload = w.FileUpload(accept="image/*", description="choose an image", layout=w.Layout(width="180px"))
        self.similar = [feature_button("mtv-similar-feature") for _ in range(N_SIMILAR)]
        self.labels = [feature_button("mtv-label") for _ in range(N_LABELS)]
        for name in NAMED:
            getattr(self, name).add_class(f"mtv-{name.replace('_', '-')}")
        self.widget = self._layout(run)

    def _layout(self, run: str) -> w.Widget:
        head = f"{cards.STYLE}<div class='mtv'><div class='over'>run {cards.escape_html(run)}</div></div>"
        sort = w.HBox([self.sort, self.descending])
        choose = [self.method, self.judge, sort, self.search, self.verdict, self.min_density, self.assessed]
        move = w.HBox([self.previous, self.next], layout=w.Layout(justify_content="space-between"))
        left = w.VBox([*choose, self.count, self.list, move], layout=w.Layout(width="370px", flex="0 0 370px"))
        activations = w.VBox([title("Activations"), self.histogram], layout=w.Layout(width="52%"))
        similar = w.VBox([title("Similar features"), *self.similar], layout=w.Layout(flex="1 1 0", min_width="0"))
        chosen = w.VBox([self.upload, self.upload_preview], layout=w.Layout(flex="0 0 210px"))
        found = w.VBox(self.labels, layout=w.Layout(flex="1 1 0", min_width="0"))
        right = w.VBox(
            [
                self.header,
                self.tiles,
                self.split,
                self.gallery,
                w.HBox([activations, similar]),
                title("Label an image of your own"),
                w.HBox([chosen, found]),
            ],
            layout=w.Layout(flex="1 1 0", min_width="0"),
        )
        for part, name in ((left, "mtv-panel"), (right, "mtv-panel"), (similar, "mtv-buttons"), (found, "mtv-buttons")):
            part.add_class(name)
        body = w.HBox([left, right], layout=w.Layout(align_items="flex-start", grid_gap="14px"))
        return w.VBox([w.HTML(head), body.add_class("mtv-viewer")])


def title(text: str) -> w.HTML:
    """A small heading."""
    return w.HTML(f'<div class="mtv"><div class="over" style="margin-top:10px">{text}</div></div>')


def feature_button(css: str) -> w.Button:
    """A hidden button that can stand for a feature."""
    button = w.Button(layout=w.Layout(width="100%")).add_class(css)  # a layout of its own: each hides alone
    fill_button(button, None)
    return button


def fill_button(button: w.Button, content: tuple[int, str] | None) -> None:
    """Let a button stand for a feature: (its number, the text); None hides it."""
    button.layout.display = "none" if content is None else ""
    button.feature, button.description = content or (None, "")
    button.tooltip = button.description
