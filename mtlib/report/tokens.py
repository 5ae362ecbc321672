"""A finished run whose x are tokens, as the notebook `tokens` reads it: data, one coder, curves, the vision model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.images import load_image
from mtlib.embed.store import Data, load_data
from mtlib.embed.vision import AlexNetTransformer, square
from mtlib.features.methods import interpreted
from mtlib.features.token_map import TokenMap
from mtlib.learn.classifier_scores import targets
from mtlib.learn.train import read_history
from mtlib.learn.train_vision import load_vision
from mtlib.measure.zero_shot import accuracy_spliced
from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import ArtifactError, current
from mtlib.run.stage import Stage

SIDE = 224  # pixels of a picture where no vision model says otherwise


@dataclass(frozen=True)
class TokenRun:
    """What `open` found. method: of the coder; histories: method -> history of its first seed; eyes: the vision model that
    02 trained, or None when x are tokens of a layer of the encoder."""

    data: Data
    method: str
    coder: SparseCoder
    histories: dict[str, pd.DataFrame]
    eyes: AlexNetTransformer | None

    @staticmethod
    def open(run_dir: str | Path, method: str = "") -> TokenRun:
        """Read a run that is finished up to 03, every artifact verified.

        Args: run_dir: relative paths are taken from the repository root. method: "" for the first that was trained.
        Raises: ArtifactError when 03 is missing or x are no tokens; ValueError for an unknown method.
        """
        return TokenRun.read(Path(run_dir).name, Reader.of_run(run_dir).folders, method)

    @staticmethod
    def of_stage(stage: Stage, method: str = "") -> TokenRun:
        """The same for a notebook that runs as a stage: what it reads is recorded as its inputs."""
        done = current(stage.run_dir)
        folders = {name: stage.input(name) for name in ("01_embed", "02_classify", "03_train") if name in done}
        return TokenRun.read(stage.run_dir.name, folders, method)

    @staticmethod
    def read(run_dir: str, folders: dict[str, Path], method: str = "") -> TokenRun:
        """Read the artifacts (stage -> folder, verified) of the run of that name; raises as `open`."""
        if "03_train" not in folders:
            raise ArtifactError(f"{run_dir}: no coders yet; run the notebooks up to 03_train first")
        data = load_data(folders["01_embed"], folders.get("02_classify"))
        if data.tokens == 1:
            raise ArtifactError(f"{run_dir}: x has one row per image; run the profile alexnet, or a layer's patches")
        coders = interpreted(folders["03_train"])
        done = coders[coders["status"] == "ok"].set_index("method")["folder"]
        if not len(done) or (method and method not in done):
            raise ValueError(f"method = {method!r}: this run has {list(done.index)}")
        method = method or str(done.index[0])
        histories = {name: read_history(folders["03_train"] / folder) for name, folder in done.items()}
        eyes = load_vision(folders["02_classify"] / "vision") if _trained(folders) else None
        return TokenRun(data, method, SparseCoder.from_pretrained(folders["03_train"] / done[method]), histories, eyes)

    def images(self, split: str) -> np.ndarray:
        """Numbers of the images of a split, each file once."""
        return np.unique(self.data.rows(split) // self.data.tokens)

    def picture(self, image: int) -> Image.Image:
        """An image as the vision model sees it: square."""
        path = self.data.images(image * self.data.tokens)
        if path is None:
            raise ArtifactError("the embeddings came as arrays, so there are no images to show")
        side = self.eyes.config.side if self.eyes else SIDE
        return Image.fromarray(square(load_image(path)[0], side).transpose(1, 2, 0))

    def shown(self, image: int) -> Image.Image:
        """The same for a figure: a white square where no image is to be shown (`pictures: false` in 01)."""
        picture = self.picture(image)
        return picture if self.data.pictures else Image.new("RGB", picture.size, "white")

    @property
    def corners(self) -> tuple[float, float] | None:
        """(left edge of the first place of the grid, width of a place) in pixels; None: the grid fills the picture."""
        if self.eyes is None:
            return None
        first, second = self.eyes.config.centres[:2]
        return first - (second - first) / 2, second - first

    def spliced(self, n: int) -> dict:
        """`accuracy_spliced` of the coder on (at most) n labelled test images, evenly taken; {} without a vision model."""
        labels, _ = targets(self.data.manifest.iloc[:: self.data.tokens], self.data.facts["labels"])
        test = self.images("test")
        test = test[labels[test] >= 0]
        test = test[np.linspace(0, len(test) - 1, min(n, len(test))).round().astype(int)] if len(test) else test
        if self.eyes is None or not len(test):
            return {}
        pixels = np.stack([np.asarray(self.picture(i)).transpose(2, 0, 1) for i in test])
        return accuracy_spliced(self.eyes, self.coder, pixels, labels[test])


def section(method: str, last: pd.DataFrame, seen: dict, found: TokenMap) -> str:
    """The notebook's part of the report, as Markdown.

    Args: last: validation fvu and l0 at the end of training, by method. seen: `TokenRun.spliced`. found: the token shown.
    """
    names = {"method": "method", "step": "steps", "fvu": "FVU (val)", "l0": "L0 per token"}
    parts = ["## What does one token hold?", markdown_table(last.reset_index(), names)]
    if seen:
        parts.append(
            f"With the reconstruction of {method} in place of every token, the vision model's accuracy on {seen['n']} test "
            f"images goes from {seen['accuracy']:.1%} to {seen['accuracy_spliced']:.1%} ({seen['agreement']:.1%} the same "
            f"decision); with one constant token it is {seen['accuracy_constant']:.1%}."
        )
    shown = f"The strongest features of the token at row {found.place[0]}, column {found.place[1]} of a test image"
    parts += ["![Curves](figures/tokens_curves.png)", f"{shown}:", "![Features](figures/tokens_features.png)"]
    return "\n\n".join(parts) + "\n"


def _trained(folders: dict[str, Path]) -> bool:
    return "02_classify" in folders and (folders["02_classify"] / "vision").is_dir()
