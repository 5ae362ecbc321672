"""What the notebook `steering` opens, which features it steers, its figures, and its section of the report."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed import store
from mtlib.embed.encoders import Encoder
from mtlib.features.gallery import by_activity
from mtlib.features.methods import interpreted
from mtlib.judge.text_space import text_verdict
from mtlib.learn.classifier import Classifier
from mtlib.measure.steering import Steering
from mtlib.measure.zero_shot import zero_shot_task
from mtlib.plots import legend
from mtlib.report.reader import Reader
from mtlib.report.text import escape_markdown as md
from mtlib.report.text import markdown_table
from mtlib.run.stage import Stage

READINGS = {
    "probability": "probability of its class",
    "logit": "classifier's logit of implausible",
    "margin": "margin of the text's verdict",
    "neighbours_kept": "nearest images that stay",
}
SHARES = {
    "class_kept": "class kept",
    "implausible": "implausible (classifier)",
    "error_by_text": "error (text)",
    "neighbours_implausible": "implausible nearest",
}
LINES = {"feature": ("C0", "-o"), "control": ("0.6", ":"), "group": ("C1", "-o"), "group control": ("0.3", "--")}


@dataclass(frozen=True)
class SteeringRun:
    """A finished run and one autoencoder of it. features: features.parquet with the column `phrase`; tops: top_images."""

    steering: Steering
    method: str
    features: pd.DataFrame
    tops: pd.DataFrame
    causes: pd.DataFrame

    @staticmethod
    def open(stage: Stage, method: str = "") -> SteeringRun | str:
        """Read the run of a stage up to 06, or say why nothing of it can be steered.

        Args: method: an autoencoder; "" for the first.
        Raises: ValueError when there is no such autoencoder.
        """
        reader, data = Reader.of_stage(stage), store.open_data(stage)
        coders = interpreted(stage.input("03_train"))
        usable = coders[(coders["status"] == "ok") & (coders["target"] == "x")].set_index("method")["folder"]
        if method and method not in usable:
            raise ValueError(f"method = {method!r} is no autoencoder of this run; there are {list(usable.index)}")
        if not len(usable):
            return "transcoders predict another layer than they read, and no autoencoder was trained"
        known = bool(data.facts["encoder"]["name"])
        encoder = Encoder.of(data.facts) if known else None
        task, why = zero_shot_task(data, lambda: encoder)
        if task is None:
            return why
        method = method or str(usable.index[0])
        coder = SparseCoder.from_pretrained(stage.input("03_train") / usable[method])
        head = None
        if data.y is not None and data.facts["labels"] == "plausibility":
            head = Classifier.load(stage.input("02_classify") / "classifier")
        steering = Steering(data, encoder, coder, task, head, text_verdict(data))
        words = reader.verdicts(method).drop_duplicates("feature", keep="first").set_index("feature")["phrase"]
        features = reader.features(method)
        features["phrase"] = words.reindex(features["feature"]).fillna("").to_numpy()
        causes = reader.table("04_causes")
        causes = causes[causes["method"] == method] if "specific_feature" in causes else pd.DataFrame()
        return SteeringRun(steering, method, features, reader.top_images(method), causes)

    def choose(self, wanted: list[int], named: str, n: int) -> pd.DataFrame:
        """Which features are steered: those asked for, those whose name holds a text, or the strongest ones.

        The strongest are, where the truth is known, those that stand for a cause (its specific feature of 04), and else the
        most active ones. Only features that fire on test images are kept.
        Returns: frame of feature, why, phrase, density.
        Raises: ValueError for a feature that the coder does not have.
        """
        if unknown := sorted(set(wanted) - set(self.features["feature"])):
            raise ValueError(f"features: {unknown[0]} is no latent of {self.method} (0 .. {len(self.features) - 1})")
        if wanted:
            why = dict.fromkeys(wanted, "asked for")
        elif named:
            has = self.features["phrase"].str.contains(named, case=False, regex=False)
            why = dict.fromkeys(by_activity(self.features[has])["feature"].head(n), f"its name holds {named!r}")
        elif len(self.causes):
            best = self.causes.dropna(subset=["specific_feature"]).drop_duplicates("cause")
            best = best.sort_values("specific_auroc", ascending=False).drop_duplicates("specific_feature").head(n)
            why = {int(r.specific_feature): f"cause {r.cause}" for r in best.itertuples()}
        else:
            why = dict.fromkeys(by_activity(self.features)["feature"].head(n), "most active")
        chosen = self.features.set_index("feature").loc[list(why), ["phrase", "density"]].reset_index()
        chosen.insert(1, "why", list(why.values()))
        return chosen[chosen["density"] > 0].reset_index(drop=True)

    def images(self, feature: int, n: int) -> np.ndarray:
        """(<= n,) first rows of the test images on which a feature fires most."""
        own = self.tops[(self.tops["feature"] == feature) & (self.tops["split"] == "test")]
        return own.sort_values("rank")["row"].to_numpy()[:n]

    @property
    def groups(self) -> dict[int, list[int]]:
        """Feature of a cause -> all features that truly stand for that cause (05), itself included; {} without truth."""
        if not len(self.causes) or "is_error" not in self.features:
            return {}
        truly = self.features[self.features["is_error"].astype(bool)].groupby("top_cause")["feature"].agg(list)
        own = self.causes.dropna(subset=["specific_feature"]).drop_duplicates("cause")
        pairs = zip(own["specific_feature"].astype(int), own["cause"], strict=True)
        return {f: sorted({f, *truly[cause]}) for f, cause in pairs if cause in truly}

    @property
    def alive(self) -> np.ndarray:
        """Latents that fire on test images."""
        return self.features.loc[self.features["density"] > 0, "feature"].to_numpy()


def steering_figure(table: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """A row per reading, a panel per feature: the reading against the factor, alone and with its group; controls grey."""
    shown = [c for c in READINGS if table[c].notna().any()]
    size = (1.2 + 1.7 * len(chosen), 0.9 + 1.7 * len(shown))
    fig, axes = plt.subplots(len(shown), len(chosen), figsize=size, squeeze=False, sharex=True, sharey="row")
    for row, column in zip(axes, shown, strict=True):
        for ax, feature in zip(row, chosen["feature"], strict=True):
            own = table[table["feature"] == feature]
            for direction, (colour, style) in LINES.items():
                part = own[own["direction"] == direction]
                if len(part):
                    ax.plot(part["factor"], part[column], style, color=colour, markersize=3, label=direction)
        row[0].set_ylabel(textwrap.fill(READINGS[column], 20), fontsize=9)
    for ax, line in zip(axes[0], chosen.itertuples(), strict=True):
        why = textwrap.fill(line.why.removeprefix("cause ").replace("_", " "), 20, max_lines=2, placeholder=" …")
        ax.set_title(f"{line.feature}\n{why}", fontsize=8, parse_math=False)
    fig.supxlabel("factor (0: removed, 1: as it is)")
    legend(fig)
    return fig


def neighbours_figure(run: SteeringRun, feature: int, row: int, factors: list[float], k: int = 5) -> Figure:
    """An image, and its nearest images with the feature at each factor: a line per factor."""
    from mtlib.features.gallery import loader

    load, images = loader(run.steering.data), np.array([row])
    found = run.steering.embeddings(images, [feature], factors)
    fig, axes = plt.subplots(len(factors), k + 1, figsize=(1.3 * (k + 1), 1.45 * len(factors)), squeeze=False)
    for line, factor, e in zip(axes, factors, found, strict=True):
        for ax, at in zip(line, [row, *run.steering.neighbours(e, images, k)[0]], strict=True):
            picture = load(int(at))
            ax.imshow(picture if isinstance(picture, Image.Image) else Image.new("RGB", (8, 8), "white"))
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
        line[0].set_ylabel(f"factor {factor:g}", fontsize=8)
    axes[0][0].set_title("image", fontsize=8)
    axes[0][1].set_title("nearest", fontsize=8)
    return fig


def ends(table: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """A line per feature and direction: every reading as it is, and with the smallest and the largest factor."""
    low, high = table["factor"].min(), table["factor"].max()
    wide = table.pivot_table(index=["feature", "direction"], columns="factor", values=[*READINGS, *SHARES], sort=False)
    lines = []
    for line in chosen.itertuples():
        for direction in [d for d in LINES if (line.feature, d) in wide.index]:
            own = wide.loc[(line.feature, direction)]
            head = {"feature": line.feature, "why": line.why, "phrase": line.phrase, "direction": direction}
            for c in [c for c in (*READINGS, *SHARES) if table[c].notna().any()]:
                head |= {
                    f"{c}_{name}": own[(c, at)] for name, at in (("low", low), ("0", 0.0), ("1", 1.0), ("high", high))
                }
            lines.append(head)
    return pd.DataFrame(lines)


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """Means of `ends` over the features, a line per direction and reading: at the smallest factor, at 0, 1 and the largest."""
    names = [c for c in (*READINGS, *SHARES) if f"{c}_1" in found]
    by = found.drop(columns="feature").groupby("direction", sort=False)
    mean, counts = by.mean(numeric_only=True), by.size()
    lines = [
        {
            "reading": READINGS.get(c) or SHARES[c],
            "scaled": d,
            "features": int(counts[d]),
            "low": row[f"{c}_low"],
            "0": row[f"{c}_0"],
        }
        | {"1": row[f"{c}_1"], "high": row[f"{c}_high"]}
        for c in names
        for d, row in mean.iterrows()
    ]
    return pd.DataFrame(lines)


def section(run: SteeringRun, table: pd.DataFrame, chosen: pd.DataFrame) -> str:
    """The notebook's part of the report, as Markdown."""
    low, high = table["factor"].min(), table["factor"].max()
    group = (
        "*group*: all features that truly stand for its cause, together, where there are any; "
        if "group" in set(table["direction"])
        else ""
    )
    intro = (
        f"{len(chosen)} features of {md(run.method)} are scaled, each on the {table['n'].max()} test images on which it fires "
        f"most; all else of an image stays. {group}*control*: as many other latents in their place, the step as long. Means "
        f"over the features; 0 removes, 1 leaves, {low:g} turns round."
    )
    names = {
        "reading": "reading",
        "scaled": "scaled",
        "features": "features",
        "low": f"factor {low:g}",
        "0": "0",
        "1": "1",
        "high": f"{high:g}",
    }
    parts = ["## What does a feature do to the verdict?", intro, markdown_table(summary(ends(table, chosen)), names)]
    own = {"feature": "feature", "why": "why", "phrase": "name"}
    return "\n\n".join([*parts, markdown_table(chosen, own), "![Steering](figures/steering_factors.png)"]) + "\n"
