"""The five terms of the loss that trains the small CLIP (see train_clip.py for what each is for)."""

import numpy as np
import torch
from torch.nn import functional as F

from mtlib.scenes.captions import DETAILS, ERRORS, NORMAL, tokenizer
from mtlib.scenes.dataset import CAUSE_OF, CAUSES, FAMILIES

VARIANTS = {variant: 1 << i for i, variant in enumerate(dict.fromkeys(v for _, v in DETAILS))}
KEYS = ("family", "error", "background", "palette", "style")


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
    bits = np.array([VARIANTS.get(f["variant"], 0) for f in facts])
    masks = np.array([sum(VARIANTS[v] for v in c["variant"].split("|")) if c["variant"] else 0 for c in claims])
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


def hard_negative_loss(both, image, facts, rng):
    """Of a phrase for the error and one for its absence, which is true of each picture (captioned causes only).

    Args: image (B, d) unit rows; facts: list of B dicts. Returns: () cross entropy. Source: NegCLIP, arXiv 2210.01936.
    """
    families = [f for f in FAMILIES if CAUSES[CAUSE_OF[f]]["captioned"]]
    pools = [p for f in families for p in (NORMAL[f], ERRORS[CAUSE_OF[f]])]
    text = both["clip"].encode_text(tokenizer()([pool[rng.integers(len(pool))] for pool in pools]))
    text = F.normalize(text, dim=-1).reshape(len(families), 2, -1)
    row = torch.tensor([i for i, f in enumerate(facts) if f["family"] in families])
    of = torch.tensor([families.index(facts[i]["family"]) for i in row])
    logits = both["clip"].logit_scale.exp() * (image[row, None] * text[of]).sum(-1)  # (rows, 2)
    return F.cross_entropy(logits, torch.tensor([int(facts[i]["error"]) for i in row]))


def plausible_loss(both, image, facts):
    """Binary cross entropy of a linear head per family that is thrown away: image and label, no words."""
    names = list(FAMILIES)
    of = torch.tensor([names.index(f["family"]) for f in facts])
    logits = both["plausible"](image * 10).gather(1, of[:, None])[:, 0]  # (B,)
    return F.binary_cross_entropy_with_logits(logits, torch.tensor([float(f["error"]) for f in facts]))
