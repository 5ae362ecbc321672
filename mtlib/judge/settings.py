"""Settings of notebook 06: who judges, how the keyless judge rules, and what a model is asked (where: `ask.endpoint`)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from mtlib.run.params import Settings


class JudgeConfig(Settings):
    """None of them is fitted to the truth.

    max_features:       features per method that are judged, those most surely tied to errors first; 0: all.
    keyless_share:      a feature is an error when at least this share of its top images belongs to one family and is
                        labelled implausible; of images without a label, when they look more like that family's errors than
                        like its normal state. 0.8 is the bar that the truth of the demo sets too.
    keyless_places:     the share is of at least so many images, so that a handful cannot make an error.
    keyless_min_images: features with fewer top images are not judged, by a model neither (published: 3 or fewer).
    label_precision:    a feature labels new images from the activation on above which this share of the val images is right;
                        the lowest at which on the demo's val images every method left 95% of the plausible ones without one.
    label_images:       of at least so many val images.
    n_images:           images shown to a model per feature; images_as: one by one, or as one sheet with numbers.
    show_error_ratio:   tell the model a feature's error ratio (published; it leaks the labels into the verdict).
    score_features:     explanations per method that are tried on held-out images, those judged first; 0: none.
    score_images:       images per detection question, half of them activating. intruder_images: all but one activating.
    flip_check:         verdicts per method that are asked again under a change that should not matter; 0: none.
    dry_run:            a model's calls, tokens and cost are told, and nothing is asked.
    """

    judge: Literal["keyless", "lmm"] = "keyless"
    max_features: int = Field(0, ge=0)
    keyless_share: float = Field(0.8, gt=0, le=1)
    keyless_places: int = Field(10, ge=1)
    keyless_min_images: int = Field(4, ge=1)
    label_precision: float = Field(0.98, ge=0.5, le=1)
    label_images: int = Field(5, ge=1)
    n_images: int = Field(20, ge=1, le=100)
    images_as: Literal["separate", "collage"] = "separate"
    show_error_ratio: bool = False
    score_features: int = Field(0, ge=0)
    score_images: int = Field(10, ge=2, le=40, multiple_of=2)
    intruder_images: int = Field(5, ge=3, le=20)
    flip_check: int = Field(0, ge=0)
    dry_run: bool = False
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _enough_images(self) -> JudgeConfig:
        if self.n_images < self.keyless_min_images:
            raise ValueError(f"n_images = {self.n_images}: from keyless_min_images = {self.keyless_min_images} to 100")
        return self

    @property
    def main(self) -> str:
        """The judge whose names and verdicts are shown and published."""
        return "lmm" if self.judge == "lmm" and not self.dry_run else "keyless"

    @property
    def provides(self) -> list[str]:
        """What later stages may need: that a model was asked."""
        return ["asked"] if self.main == "lmm" else []
