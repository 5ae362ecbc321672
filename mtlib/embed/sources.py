"""Where the rows come from (rendered scenes, a folder of images, or arrays), and the phrases that may name them."""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from pydantic import Field, model_validator
from tqdm import tqdm

from mtlib.embed import arrays, datasets
from mtlib.embed.given import files
from mtlib.embed.given.words import NO_PHRASES, phrases, write_vocabulary
from mtlib.embed.listing import find_images
from mtlib.embed.manifest import (
    LISTED,
    InputError,
    attributes,
    check_bad_fraction,
    check_shares,
    complete,
    image_classes,
    sample,
)
from mtlib.embed.store import Data, open_array, save_array, write_manifest, write_rows
from mtlib.run import artifacts
from mtlib.run.params import Settings, nearest
from mtlib.scenes import BUNDLED

if TYPE_CHECKING:
    from mtlib.embed.encoders import Encoder

ENCODER = ("name", "pretrained", "fingerprint")  # facts that are empty where it is not known
BESIDE = ("labels", "val_embeddings", "test_embeddings")  # parameters of embeddings


class EmbedConfig(Settings):
    """What notebook 01 was asked for. Raises: ValueError when two sources are given, or a number is out of range."""

    images: str = ""
    embeddings: str = ""
    labels: str = ""
    val_embeddings: str = ""
    test_embeddings: str = ""
    vocabulary: str = ""
    vocabulary_names: str = ""
    templates: list[str] = []
    encoder: str = ""
    pretrained: str = ""
    encoder_precision: Literal["float32", "bf16"] = "float32"
    layer: str = ""
    tokens: Literal["cls", "patches", "all", "mean"] = "cls"
    n_scenes: int = Field(8000, ge=36)
    n_per_generator: int = Field(400, ge=0)
    seed: int = Field(0, ge=0)
    batch_size: int = Field(256, ge=1)
    max_images: int = Field(0, ge=0)
    max_bad_fraction: float = Field(0.2, ge=0, le=1)
    splits: list[float] = [0.6, 0.2, 0.2]
    workers: int = Field(2, ge=1)
    pictures: bool = True
    engine: Literal["local", "processes", "ray"] = "local"

    @model_validator(mode="after")
    def _one_source(self) -> EmbedConfig:
        if self.images and self.embeddings:
            raise ValueError("images and embeddings are both given; choose one source")
        if self.vocabulary.endswith(".npy") and not self.embeddings:
            raise ValueError(
                "vocabulary = ....npy goes with embeddings = ...; for images the encoder embeds the phrases itself "
                "(vocabulary = a list of phrases, or wordfreq:20000)"
            )
        if self.source == "images" and not self.encoder:
            raise ValueError(
                f"images = {self.images!r} needs an encoder: a CLIP of the web (encoder = ViT-L-14, pretrained = openai, or the path "
                f"of a checkpoint), or encoder = {BUNDLED}, the bundled one, which has only ever seen drawings"
            )
        for name in (n for n in BESIDE if getattr(self, n) and not self.embeddings):
            raise ValueError(f"{name} = {getattr(self, name)!r} goes with embeddings = ...")
        words = self.vocabulary and self.embeddings and not self.vocabulary.endswith(".npy")
        if words and self.encoder in ("", BUNDLED):
            raise ValueError(
                f"vocabulary = {self.vocabulary!r}: words beside embeddings need the encoder that made these (encoder = "
                "..., pretrained = ...), to embed them; or give a .npy of text embeddings in the same space"
            )
        if self.vocabulary_names and not self.vocabulary.endswith(".npy"):
            raise ValueError("vocabulary_names = ... goes with vocabulary = ....npy")
        if wrong := [t for t in self.templates if t.count("{}") != 1]:
            raise ValueError(f"templates: {wrong[0]!r} must hold {{}} once, for the phrase")
        check_shares(self.splits)
        return self

    @property
    def source(self) -> str:
        """ "scenes" (images is empty, or says so), "images" or "arrays"."""
        given = "images" if self.images else "arrays" if self.embeddings else "scenes"
        return "scenes" if self.images == "scenes" else given

    def tower(self) -> Encoder:
        """The encoder asked for; the bundled one for scenes."""
        from mtlib.embed.encoders import Encoder

        options = {"precision": self.encoder_precision, "layer": self.layer, "tokens": self.tokens}
        return Encoder.load(self.encoder or BUNDLED, self.pretrained, **options)


def doubt(config: EmbedConfig) -> str:
    """What is said first of images that the bundled encoder embeds; "" of others."""
    given = config.source == "images" and config.encoder == BUNDLED
    return "The bundled encoder has only ever seen drawings; of other images it knows nothing." if given else ""


def look_before(config: EmbedConfig, root: Path) -> None:
    """What can be said of the input without reading it, before anything runs.

    Raises: InputError, ArtifactError or EncoderError, as 01_embed itself would.
    """
    if config.source == "arrays" and config.embeddings.endswith(".npy"):
        open_array(root / config.embeddings)
    if config.source != "images":
        return
    if not config.images.startswith(datasets.SCHEMES):
        find_images(root / config.images)
    if config.pretrained and {os.sep, "."} & set(config.pretrained) and not (root / config.pretrained).exists():
        raise InputError(f"pretrained = {config.pretrained}: no such file, and no tag of a model has such a name")
    library = find_spec("open_clip").submodule_search_locations[0]  # importing it takes seconds
    known = {path.stem for path in Path(library, "model_configs").glob("*.json")} | {BUNDLED}
    name, other = config.encoder.replace("/", "-"), config.encoder.startswith("timm/") or ":" in config.encoder
    if not other and name not in known:
        raise InputError(f"encoder = {name!r} is no open_clip model; {nearest(name, known)}")


def images_of(config: EmbedConfig, root: Path, out: Path) -> tuple[Path, pd.DataFrame | None]:
    """What `from_images` is to read, and the truth of drawn scenes: these, a data set that is copied, or the path given."""
    if config.source == "scenes":
        return out / "images", render_scenes(config, out)
    if config.images.startswith(datasets.SCHEMES):
        return datasets.import_images(config.images, out / "images"), None
    return root / config.images, None


def render_scenes(config: EmbedConfig, out: Path) -> pd.DataFrame:
    """Draw the scenes into out/images and their truth into out/truth.parquet, unless a killed run already did.

    Returns: the truth, one row per image.
    """
    from mtlib.scenes.dataset import write_dataset

    wanted = {"n_scenes": config.n_scenes, "seed": config.seed, "n_per_generator": config.n_per_generator}
    done, images, truth = out / "shards" / "scenes.json", out / "images", out / "truth.parquet"
    if artifacts.standing(out, "the scenes are drawn again", done).get("scenes") != wanted:
        shutil.rmtree(images, ignore_errors=True)
        write_dataset(images, **wanted, workers=config.workers)
        os.replace(images / truth.name, truth)
        artifacts.close(out, done, [images.name, truth.name], scenes=wanted)
    return pd.read_parquet(truth)


def from_images(
    config: EmbedConfig,
    encoder: Encoder,
    images: Path,
    out: Path,
    truth: pd.DataFrame | None = None,
    found: tuple[pd.DataFrame, str] | None = None,
) -> tuple[pd.DataFrame, dict]:
    """Embed images and the phrases that may name them.

    Args:
        config:  see EmbedConfig.
        encoder: the towers.
        images:  folder of images, table or archive, as `find_images` takes it.
        out:     the stage's folder; gets embeddings/.
        truth:   of rendered scenes, and of nothing else: images of one scene share their group.
        found:   what `find_images` found there, when that is known already.
    Returns: (manifest, facts).
    Raises: InputError when the folder or too many of its files cannot be used.
    """
    from mtlib.embed.embedding import embed_images

    source = "images" if truth is None else "scenes"
    listing, labels = found or find_images(images)
    root = images if images.is_dir() else images.parent  # where the paths of the manifest start
    tokens = encoder.layer.n_tokens if encoder.layer else 1
    listing = sample(listing, config.max_images, config.seed)
    if truth is not None:
        scene = truth.set_index("path")["scene"]
        listing["group"] = "scene-" + listing["path"].map(scene).astype(str)
    if not (listing["status"] == LISTED).any():
        check_bad_fraction(listing, config.max_bad_fraction, f"images = {config.images}")
    folder = out / "embeddings"
    folder.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=int((listing["status"] == LISTED).sum()), unit="images", file=sys.stdout, mininterval=5.0)
    options = {"batch_size": config.batch_size, "workers": config.workers, "engine": config.engine}
    with bar:
        outcomes = embed_images(encoder, root, listing, folder, out / "shards" / "x", progress=bar.update, **options)
    manifest = complete(listing, outcomes, config.splits, config.seed)
    n_bad = check_bad_fraction(manifest, config.max_bad_fraction, f"images = {config.images or 'scenes'}")
    write_manifest(folder, manifest, tokens)
    if encoder.tokenizer is None:
        write_vocabulary(folder, np.zeros((0, encoder.d_out), np.float32), NO_PHRASES)
    else:
        table, templates = phrases(source, config.vocabulary, Path(__file__).resolve().parents[2])
        v = encoder.encode_texts(list(table["phrase"]), tuple(config.templates) or templates)
        write_vocabulary(folder, v, table)
    names = set(manifest.loc[manifest["status"] == "ok", "class_name"]) - {""} if labels == "classes" else ()
    facts = {"labels": labels, "class_names": sorted(names)} | (encoder.layer.facts if encoder.layer else {})
    facts["image_root"] = "images" if root.is_relative_to(out) else str(root.resolve())
    return manifest, facts | _facts(config, source, manifest, encoder.d_in, encoder.record, n_bad, tokens)


def from_arrays(config: EmbedConfig, root: Path, out: Path) -> tuple[pd.DataFrame, dict]:
    """Take embeddings that were made elsewhere, with or without labels and a vocabulary.

    Args: config; root: folder that relative paths start from; out: the stage's folder; gets embeddings/, and given/ where a
        classifier's y and logits stand beside x.
    Returns: (manifest, facts).
    Raises: InputError, ArtifactError naming the file that cannot be used.
    """
    folder, scratch = out / "embeddings", out / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    v, table, used = _words_for_arrays(config, root, scratch)
    parts = arrays.read_parts({n: getattr(config, n) for n in ("embeddings", *BESIDE)}, root, scratch, used)
    n_rows, d_in, tokens = sum(len(p.x) for p in parts), parts[0].x.shape[1], parts[0].tokens
    v = np.zeros((0, d_in), np.float32) if v is None else v
    if v.shape[1] != d_in:
        raise InputError(f"vocabulary = {config.vocabulary}: shape {v.shape}, the embeddings are {d_in} wide")
    manifest, labels = arrays.rows_manifest(parts, config.splits, config.seed)
    chunks = (p.x[i : i + 8192] for p in parts for i in range(0, len(p.x), 8192))
    write_rows(folder / "x.npy", (n_rows, d_in), chunks)
    write_manifest(folder, manifest, tokens)
    write_vocabulary(folder, v, table)
    if (given := files.classified(root / config.embeddings, n_rows)) and len(parts) == 1:
        for name, value in zip(("y", "logits"), given, strict=True):
            save_array(out / "given" / f"{name}.npy", value)
    names = sorted(set(manifest["class_name"]) - {""}) if labels == "classes" else []
    facts = {"labels": labels, "class_names": names, "image_root": ""}
    if tokens > 1:
        facts |= {"layer": "given", "tokens": "all", "tokens_per_image": tokens, "token_grid": [0, 0], "first_patch": 0}
    return manifest, facts | _facts(config, "arrays", manifest, d_in, dict.fromkeys(ENCODER, ""), 0, tokens)


def _words_for_arrays(
    config: EmbedConfig, root: Path, scratch: Path
) -> tuple[np.ndarray | None, pd.DataFrame, tuple[Path, ...]]:
    """Embeddings of words (V, D), their table, and the text file that names them; words alone are embedded as they are
    (unless templates are given) by the encoder that made the embeddings."""
    if not config.vocabulary:
        return None, NO_PHRASES, ()
    if config.vocabulary.endswith(".npy"):
        names = str(root / config.vocabulary_names) if config.vocabulary_names else ""
        v, table, file = arrays.read_vocabulary(root / config.vocabulary, names, scratch)
        return v, table, (file,)
    from mtlib.embed.encoders import Encoder

    table, _ = phrases("arrays", config.vocabulary, root)
    encoder = Encoder.load(config.encoder, config.pretrained)
    return encoder.encode_texts(list(table["phrase"]), tuple(config.templates) or ("{}",)), table, ()


def _facts(
    config: EmbedConfig, source: str, manifest: pd.DataFrame, d_in: int, encoder: dict, n_bad: int, tokens=1
) -> dict:
    n_rows = int((manifest["status"] == "ok").sum()) * tokens
    facts = {"n_rows": n_rows, "d_in": d_in, "n_bad": n_bad, "source": source, "encoder": encoder}
    return facts | {"has_truth": source == "scenes", "pictures": config.pictures}


def varies(data: Data, split: str) -> bool:
    """Whether a split has two images that differ in x; less tells nothing about variance."""
    rows = data.rows(split)[:: data.tokens]
    return len(rows) > 1 and bool((data.x[rows[1:1024]] != data.x[rows[0]]).any())


def provided(data: Data) -> list[str]:
    """What an artifact has that later stages and sections may need; see mtlib/run/needs.py."""
    source, images = data.facts["source"], data.image_root is not None
    columns = [c for c in attributes(data.manifest) if data.manifest[c].notna().any()]
    known = {
        "arrays": source == "arrays",
        "attributes": data.truth is not None or bool(columns),
        "classes": bool(image_classes(data.manifest, data.tokens)[1]),
        "folder": source == "images",
        "generators": data.manifest["generator"].replace("", None).nunique() > 1,
        "images": images,
        "labels": data.facts["labels"] == "plausibility",
        "pictures": images and data.pictures,
        "scenes": source == "scenes",
        "text": len(data.phrases) > 0,
        "trainable": varies(data, "train") and len(data.rows("val")) > 0,
        "tower": images and len(data.phrases) > 0,
        "truth": data.truth is not None,
    }
    return [name for name, there in known.items() if there]
