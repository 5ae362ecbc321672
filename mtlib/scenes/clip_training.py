"""What trains the small CLIP in notebooks/train_clip.py: its pictures, and the four terms of the loss."""

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing import get_context

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mtlib.run.artifacts import close, standing
from mtlib.scenes.captions import phrases, tokenizer
from mtlib.scenes.causes import CAUSE_OF, CAUSES
from mtlib.scenes.dataset import FAMILIES, SCENES_PER_SEED, Spec, render

SIDE = 64  # pixels of a training picture
KEYS = ("family", "error", "background", "palette", "style")


def draw_scene(first, i):
    """One training scene: two nuisances of its plausible and two of its implausible version.

    Returns: (pixels (4, 64, 64, 3) uint8, list of 4 dicts with family, error, variant, background, palette, style).
    """
    family = list(FAMILIES)[i % len(FAMILIES)]
    pixels, facts = np.empty((4, SIDE, SIDE, 3), np.uint8), []
    for v in range(4):
        image, truth = render(Spec(first + i, family, error=v >= 2, view=v % 2))
        pixels[v] = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        seen = {key: getattr(truth["nuisance"], key) for key in ("background", "palette", "style")}
        facts.append({"family": family, "error": v >= 2, "variant": truth["variant"]} | seen)
    return pixels, facts


def draw_scenes(n_scenes, seed, workers, folder):
    """All training scenes in memory; kept in `folder` for the next start.

    Returns: (pixels (n_scenes, 4, 64, 64, 3) uint8, facts, a list of n_scenes lists of 4 dicts).
    """
    record, images, told = (folder / f"scenes-{seed}-{n_scenes}.{kind}" for kind in ("record", "npy", "json"))
    if standing(folder, "the scenes are drawn again", record):
        return np.load(images), json.loads(told.read_text())
    pixels, facts = np.empty((n_scenes, 4, SIDE, SIDE, 3), np.uint8), []
    draw = partial(draw_scene, seed * SCENES_PER_SEED)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        drawn = pool.map(draw, range(n_scenes), chunksize=100)
        for i, (x, f) in enumerate(drawn):
            pixels[i] = x
            facts.append(f)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(images, pixels)
    told.write_text(json.dumps(facts))
    close(folder, record, [images.name, told.name])
    return pixels, facts


@cache
def variant_bits():
    """One bit for each way in which an error is told."""
    told = [key[1] for key in phrases() if key[0] in CAUSES]
    return {variant: 1 << i for i, variant in enumerate(dict.fromkeys(told))}


def truth_of_captions(facts, claims):
    """Which caption is true of which picture.

    Args:
        facts:  list of B dicts, what each picture shows.
        claims: list of B dicts, what each caption says; None where it is silent.
    Returns: (B, B) bool, [picture, caption].
    """
    true = np.ones((len(facts), len(claims)), bool)
    for key in KEYS:
        said = np.array([c[key] is not None for c in claims])
        same = np.array([[f[key] == c[key] for c in claims] for f in facts])
        true &= same | ~said
    bit = variant_bits()
    bits = np.array([bit.get(f["variant"], 0) for f in facts])
    masks = np.array([sum(bit[v] for v in c["variant"].split("|")) if c["variant"] else 0 for c in claims])
    return true & (((bits[:, None] & masks[None]) > 0) | (masks[None] == 0))


def caption_loss(logits, true):
    """Contrastive loss with several positives per row and column; logits (B, B), true (B, B) bool."""
    t = true.float()
    rows = -(F.log_softmax(logits, 1) * t).sum(1) / t.sum(1)
    columns = -(F.log_softmax(logits, 0) * t).sum(0) / t.sum(0)
    return (rows.mean() + columns.mean()) / 2


def scene_losses(h):
    """Same-scene and twin losses.

    Args:
        h: (B, d) float, unit rows; 4 rows per scene: plausible, plausible again, implausible, implausible again.
    Returns: (same scene against the whole batch, same scene against its twins alone), both at temperature 0.1.
    """
    B = len(h)
    sim = h @ h.T / 0.1  # (B, B)
    index = torch.arange(B)
    partner = index ^ 1
    same = F.cross_entropy(sim.masked_fill(torch.eye(B, dtype=torch.bool), float("-inf")), partner)
    three = torch.stack([sim[index, partner], sim[index, index ^ 2], sim[index, index ^ 3]], 1)
    return same, F.cross_entropy(three, torch.zeros(B, dtype=torch.long))


def hard_negative_loss(clip, image, facts, rng):
    """Of a phrase for the error and one for its absence, which is true of each picture (captioned causes only).

    Args: image (B, d) unit rows; facts: list of B dicts. Returns: () cross entropy. Source: NegCLIP, arXiv 2210.01936.
    """
    families = [f for f in FAMILIES if CAUSES[CAUSE_OF[f]]["captioned"]]
    pools = [phrases()[key] for f in families for key in (("normal", f), ("error", CAUSE_OF[f]))]
    text = clip.encode_text(tokenizer()([pool[rng.integers(len(pool))] for pool in pools]))
    text = F.normalize(text, dim=-1).reshape(len(families), 2, -1)
    row = torch.tensor([i for i, f in enumerate(facts) if f["family"] in families])
    of = torch.tensor([families.index(facts[i]["family"]) for i in row])
    logits = clip.logit_scale.exp() * (image[row, None] * text[of]).sum(-1)  # (rows, 2)
    return F.cross_entropy(logits, torch.tensor([int(facts[i]["error"]) for i in row]))
