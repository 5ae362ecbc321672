"""Label new images: which error features fire, what each stands for, and how often it was right on the run's own images."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from mtlib.coders.layouts import need, only
from mtlib.coders.sparse_coder import SparseCoder
from mtlib.embed.encoders import Encoder
from mtlib.embed.given.torch_files import load_tensors
from mtlib.embed.images import from_pil, load_image
from mtlib.embed.vision import vision_tokens
from mtlib.features.familiar import Familiar
from mtlib.judge import given_records, thresholds
from mtlib.judge.given_records import UNVERIFIED, VERIFIED
from mtlib.learn.classifier import Classifier
from mtlib.learn.vision import load_vision
from mtlib.measure.codes import interpreted
from mtlib.measure.logit import pushes
from mtlib.run.artifacts import open_run, read_meta

STAGES = ("01_embed", "03_train", "05_features", "06_interpret")


class Labeler:
    """What a finished run says about an image it has not seen. Every artifact is verified when it is opened.

    Where val images are labelled plausible or implausible, a feature is named only if they bear it out (thresholds.py): it is
    enriched, specific above a threshold of its own, called an error by the judge, and pushes this image's logit up. Of an image
    that is unlike the run's own (familiar.py) nothing is said.

    Args:
        run_dir:   folder of the run, e.g. "runs/demo"; relative paths are taken from the repository root.
        method:    a method's name; "" takes the first that was trained.
        threshold: of all other features: one counts as present when its activation, in the coder's own units, is above it
            (published: 0.5). The fixed JumpReLU of the published coders adds 1 to what passes its jump, so there 0.5 keeps weak
            activations between 0.5 and 1 and everything beyond the jump; a coder trained on another scale may need
            another value, and 0 keeps every feature that fires.
        judge:     whose phrases and verdicts are shown; "" takes the one 06 ran with.
        records:   JSONL files of explanations (given_records.py) that take the place of the judge's. Then only features that
            these tell of are returned, each with `check`: verified | unverified | contradicted by the run's labels; without
            labels all are unverified. What is contradicted, or holds no answer, is left out.
        as_published: leave nothing out: every feature above `threshold` is named, whatever the labels say of it.
    Raises: ArtifactError when a stage is missing or damaged; ValueError for an unknown method, threshold < 0 or bad records.
    """

    given: dict[int, dict] | None = None  # what records say, by feature
    chosen: pd.DataFrame | None = None  # the features that may label an image, by feature; None: nothing is left out
    as_published = False
    familiar: Familiar | None = None  # None where the run has too few images to know what is usual

    def __init__(
        self,
        run_dir: str | Path,
        method: str = "",
        threshold: float = thresholds.PUBLISHED_THRESHOLD,
        judge: str = "",
        records: Sequence[str | Path] = (),
        as_published: bool = False,
    ):
        if not 0 <= threshold < float("inf"):
            raise ValueError(f"threshold = {threshold}: must be finite and >= 0")
        folders = open_run(run_dir, STAGES)
        self.run_dir, self.threshold = Path(run_dir), threshold
        self.facts = read_meta(folders["01_embed"])["facts"]
        vision = folders.get("vision_model")  # whose tokens are x
        self.eyes = load_vision(vision / "vision") if vision else None
        self.facts |= read_meta(vision)["facts"]["x"] if vision else {}
        self.method, self.coder = _coder(folders["03_train"], method)
        self.classifier, self.classes = _classifier(folders.get("02_classify"))
        self.features = pd.read_parquet(folders["05_features"] / "features" / self.method / "features.parquet")
        explanations = folders["06_interpret"] / "explanations" / self.method
        verdicts = pd.read_parquet(explanations / "verdicts.parquet")
        self.familiar = Familiar.load(folders["06_interpret"])
        self.judge = judge or read_meta(folders["06_interpret"])["facts"].get("judge", "keyless")
        if self.judge not in set(verdicts["judge"]):
            raise ValueError(f"judge = {self.judge!r}: 06 has verdicts of {sorted(set(verdicts['judge']))}")
        self.verdicts = verdicts[verdicts["judge"] == self.judge].set_index("feature")
        self.features = self.features.set_index("feature")
        self.numbers: list | None = None  # by which features go, where that is not their own number
        self.given = given_records.read(records, len(self.coder.W_dec)) if records else None
        self.as_published = as_published
        known = thresholds.read(explanations)
        if len(known) and self.given is None and not as_published:
            self.chosen = thresholds.usable(known, self.verdicts.reset_index())

    @classmethod
    def of_probes(
        cls,
        probes: str | Path,
        features: str | Path,
        encoder: Encoder | None = None,
        threshold: float = thresholds.PUBLISHED_THRESHOLD,
    ) -> Labeler:
        """The published labelling of Matryoshka Transcoders: a linear probe per relevant feature, relu(w x + b) > threshold.

        Args:
            probes:   relevant_features_probe.pth, a state dict {probes.{i}.weight (1, D), probes.{i}.bias (1,)}.
            features: relevant_features_info.jsonl; line i tells of probe i, also where a number comes twice.
            encoder:  whose embeddings the probes read, Encoder.load("ViT-L-14", "openai"); None: x itself must be given.
        Raises: ValueError when a file is of another layout, or their lengths or widths differ.
        """
        weight, bias = _probes(Path(probes))
        lines = _lines(Path(features))
        if len(lines) != len(bias) or (encoder and encoder.d_in != weight.shape[0]):
            width = encoder.d_in if encoder else weight.shape[0]
            has = f"{len(bias)} probes of width {weight.shape[0]}, {len(lines)} lines, and embeddings of width {width}"
            raise ValueError(f"{Path(probes).name}: {has} do not fit each other")
        labeler = cls.__new__(cls)
        labeler.run_dir, labeler.threshold, labeler.method, labeler.judge = None, threshold, "probes", "published"
        labeler.facts = {"d_in": weight.shape[0], "labels": "none", "encoder": {"name": ""}}
        labeler.eyes = labeler.classifier = None
        labeler.classes, labeler.numbers = [], lines.pop("feature_num").tolist()
        labeler.coder, labeler.features = _Probes(weight, bias), lines
        labeler.verdicts = lines.assign(verdict="").rename(columns={"explanation": "phrase"})
        if encoder:
            labeler.encoder = encoder
        return labeler

    @functools.cached_property
    def encoder(self) -> Encoder:
        """The encoder that made the run's embeddings, loaded when it is first needed; its fingerprint is checked."""
        return Encoder.of(self.facts)

    def embed(self, image: str | Path | Image.Image | np.ndarray) -> np.ndarray:
        """x of an image, (D,), or (T, D) when the run has T tokens per image: of a path, a PIL image, or x itself.

        Raises: ImageRefused for a bad file; ValueError for an array of another width or with NaN.
        """
        if isinstance(image, np.ndarray):
            if image.shape != self._shape or not np.isfinite(image).all():
                shape = " x ".join(map(str, self._shape))
                raise ValueError(f"an embedding must be {shape} finite numbers, got shape {image.shape}")
            return image.astype(np.float32)
        picture = from_pil(image) if isinstance(image, Image.Image) else load_image(Path(image))[0]
        if self.eyes is not None:
            return vision_tokens(self.eyes, [picture])[0]
        if "layer" not in self.facts:
            return self.encoder.encode_images([picture])[0].astype(np.float32)
        return self.encoder.encode_layer([picture]).reshape(self._shape)

    def distance(self, image: str | Path | Image.Image | np.ndarray) -> float | None:
        """How unlike the run's own images one is, in units of the distance that 98% of its val images keep; above 1 nothing is said
        of it. None where the run has too few images to tell. Args: as of `embed`."""
        if self.familiar is None:
            return None
        return float(self.familiar.distance(np.atleast_2d(self.embed(image)).mean(axis=0, keepdims=True))[0])

    def _silent(self, distance: float | None) -> bool:
        return distance is not None and distance > 1 and not self.as_published

    @property
    def _shape(self) -> tuple[int, ...]:
        tokens, width = self.facts.get("tokens_per_image", 1), self.facts["d_in"]
        return (width,) if tokens == 1 else (tokens, width)

    @torch.no_grad()
    def get_explanations(self, image: str | Path | Image.Image | np.ndarray) -> list[dict]:
        """The features present in an image, strongest first, in the published format.

        Args:
            image: path, PIL image, or x itself, (D,) or (T, D): a feature is as active as on its strongest token.
        Returns: dicts of feature_num, activation, explanation ("" when it has no name), wrong_ratio (share of its
            activating test images that are implausible; None without labels), wrong_count, total_count, verdict,
            logit_push (what the feature adds to this image's logit of being implausible; None without that classifier),
            precision (share of the val images this strong on which the label is right; None unless verified) and check: "verified"
            where labels chose the features, "unverified" where there are none; with records also "contradicted"; distance, of `distance`.
            With as_published none of these three, without records. Nothing is returned for an image whose distance is above 1.
        """
        x = self.embed(image)
        if self._silent(distance := self.distance(x)):
            return []
        tokens = torch.from_numpy(np.atleast_2d(x))
        z = self.coder.encode(tokens).amax(dim=0)
        above = self.threshold
        if self.chosen is not None:
            above = self.chosen["threshold"].reindex(range(len(z)), fill_value=np.inf).to_numpy()
        present = np.flatnonzero(z.numpy() > above)
        order = present[np.lexsort((present, -z.numpy()[present]))]
        pushed = self._pushes(z, order, tokens)
        own = {} if self.as_published else {"distance": distance}
        lines = [self._line(int(f), float(z[f]), push) | own for f, push in zip(order, pushed, strict=True)]
        if self.chosen is not None:
            precision = self.chosen["precision"]
            lines = [said for said in lines if said["logit_push"] is None or said["logit_push"] > 0]
            return [said | {"precision": float(precision[said["feature_num"]]), "check": VERIFIED} for said in lines]
        if self.given is None:
            return lines if self.as_published else [said | {"precision": None, "check": UNVERIFIED} for said in lines]
        return self._in_given_words(lines)

    def _in_given_words(self, lines: list[dict]) -> list[dict]:
        pairs = ((said, said["feature_num"]) for said in lines if said["feature_num"] in self.given)
        found = [given_records.told(said, self.given[f], self.features.loc[f]) for said, f in pairs]
        out = given_records.CONTRADICTED
        return [said for said in found if self.as_published or (said["explanation"] and said["check"] != out)]

    def _pushes(self, z: Tensor, features: np.ndarray, x: Tensor) -> list[float | None]:
        if self.classifier is None or self.facts["labels"] != "plausibility":
            return [None] * len(features)
        mean = x.mean(dim=0, keepdim=True)
        return pushes(self.coder, self.classifier, mean, z[None], np.zeros_like(features), features).tolist()

    def _line(self, feature: int, activation: float, push: float | None) -> dict:
        line, verdict = self.features.loc[feature], self.verdicts.loc[feature]
        known = pd.notna(line["error_ratio"])
        return {
            "feature_num": self.numbers[feature] if self.numbers else feature,
            "activation": activation,
            "explanation": str(verdict["phrase"] or ""),
            "wrong_ratio": float(line["error_ratio"]) if known else None,
            "wrong_count": int(line["n_error"]) if known else None,
            "total_count": int(line["n_active_test"]),
            "verdict": str(verdict["verdict"]),
            "logit_push": push,
        }

    @torch.no_grad()
    def label(self, image: str | Path | Image.Image | np.ndarray) -> dict:
        """What the run says about one image.

        Returns: distance (how unlike the run's images it is; above 1 all else is empty); probability (of being implausible; None
            without such a classifier), predicted ("implausible" |
            "plausible" | a class name | ""), reasons (of an image predicted implausible: explanations of the features
            with verdict "error" that push the logit up, the strongest push first), explanations (all).
        """
        x = self.embed(image)
        distance, explanations = self.distance(x), self.get_explanations(x)
        out = {"distance": distance, "probability": None, "predicted": ""}
        if self.classifier is not None and not self._silent(distance):
            logits = self.classifier(torch.from_numpy(x)[None])[0]
            if self.facts["labels"] == "plausibility":
                out["probability"] = float(torch.sigmoid(logits))
                out["predicted"] = "implausible" if logits > 0 else "plausible"
            else:
                best = int(logits.argmax()) if logits.ndim else int(logits > 0)
                out["predicted"] = self.classes[best] if best < len(self.classes) else str(best)
        errors = [e for e in explanations if e["verdict"] == "error" and (e["logit_push"] or 0) > 0]
        errors = sorted(errors, key=lambda e: -e["logit_push"]) if out["predicted"] == "implausible" else []
        reasons = [e["explanation"] for e in errors if e["explanation"]]
        return out | {"reasons": list(dict.fromkeys(reasons)), "explanations": explanations}


def _coder(train: Path, method: str) -> tuple[str, SparseCoder]:
    coders = interpreted(train)
    usable = coders[coders["status"] == "ok"]
    if method and method not in set(coders["method"]):
        raise ValueError(f"method = {method!r}: this run has {sorted(coders['method'])}")
    line = usable[usable["method"] == method] if method else usable
    if line.empty:
        why = coders.loc[coders["method"] == method, "reason"].iloc[0] if method else "no method was trained"
        raise ValueError(f"method = {method!r} has no coder: {why}")
    return str(line.iloc[0]["method"]), SparseCoder.from_pretrained(train / line.iloc[0]["folder"])


def _classifier(classify: Path | None) -> tuple[Classifier | None, list[str]]:
    if classify is None:
        return None, []
    return Classifier.load(classify / "classifier"), list(read_meta(classify)["facts"].get("class_names", []))


class _Probes(NamedTuple):
    """Published probes in the place of a coder."""

    weight: Tensor  # (D, F)
    bias: Tensor  # (F,)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.weight + self.bias).relu()


def _probes(path: Path) -> tuple[Tensor, Tensor]:
    saved = load_tensors(path)
    names = [f"probes.{i}" for i in range(max(1, len(saved) // 2))]
    only(path.name, "the file", saved, " ".join(f"{name}.{part}" for name in names for part in ("weight", "bias")))
    parts = [need(path.name, saved, f"{name}.weight", f"{name}.bias") for name in names]
    return torch.cat([w for w, _ in parts]).T, torch.cat([b for _, b in parts])


def _lines(path: Path) -> pd.DataFrame:
    """feature_num, explanation, and under our names wrong_ratio, wrong_count and total_count of every line."""
    named = {"wrong_ratio": "error_ratio", "wrong_count": "n_error", "total_count": "n_active_test"}
    found = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            found.append({key: record[key] for key in ("feature_num", "explanation", *named)})
        except (json.JSONDecodeError, TypeError, KeyError) as e:
            fields = f"expected feature_num, explanation, {', '.join(named)}"
            raise ValueError(f"{path.name} line {i}: {fields} ({e})") from e
    return pd.DataFrame(found, columns=["feature_num", "explanation", *named]).rename(columns=named)
