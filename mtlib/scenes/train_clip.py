"""Trains the small CLIP on drawn scenes: `python -m mtlib.scenes.train_clip --out <folder>`.

Five terms, in clip_losses.py. caption: a caption is a positive for every picture of the batch that it is true of. hard: of a
phrase for an error and one for its absence, the one that is true (captioned causes only). same: a scene drawn again under
other nuisances is the positive of its picture, all else in the batch a negative. twin: of those, the plausible and the
implausible version of one scene alone. plausible: a linear head per family, thrown away afterwards, says whether a picture is
implausible. The last three see no word, so the image tower can represent the two causes that no caption tells, while the
text tower never learns to name them. Everything random is a function of (seed, step): a run that is stopped and started
again continues exactly.
"""

import argparse
import json
import time
from contextlib import nullcontext
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from mtlib.scenes.captions import CONTEXT_LENGTH, caption, tokenizer
from mtlib.scenes.clip_losses import caption_loss, hard_negative_loss, plausible_loss, scene_losses, truth_of_captions
from mtlib.scenes.dataset import FAMILIES, SCENES_PER_SEED, Spec, render

MODEL = {
    "embed_dim": 192,
    # of the towers tried (a 5-block ViT, ConvNeXt-Atto, RegNetX-002) this one learned most per second of one core by far
    "vision_cfg": {"image_size": 64, "timm_model_name": "dla46_c", "timm_pool": "avg", "timm_proj": "linear"},
    "text_cfg": {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "interpolation": "bicubic", "resize_mode": "squash"}
WEIGHTS = {"caption": 0.5, "same": 0.1, "twin": 0.1, "hard": 1.0, "plausible": 1.0}


def draw_scene(first, i):
    """One training scene: two nuisances of its plausible and two of its implausible version.

    Returns: (pixels (4, 64, 64, 3) uint8, list of 4 dicts with family, error, variant, background, palette, style).
    """
    family = list(FAMILIES)[i % len(FAMILIES)]
    pixels, facts = np.empty((4, 64, 64, 3), np.uint8), []
    for v in range(4):
        image, truth = render(Spec(first + i, family, error=v >= 2, view=v % 2))
        pixels[v] = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC))
        n = truth["nuisance"]
        facts.append(
            {
                "family": family,
                "error": v >= 2,
                "variant": truth["variant"],
                "background": n.background,
                "palette": n.palette,
                "style": n.style,
            }
        )
    return pixels, facts


def draw_scenes(n_scenes, seed, workers, cache):
    """All training scenes in memory; kept in the folder `cache` for the next start.

    Returns: (pixels (n_scenes, 4, 64, 64, 3) uint8, facts, a list of n_scenes lists of 4 dicts).
    """
    stem = cache / f"scenes-{seed}-{n_scenes}"
    if stem.with_suffix(".json").exists():
        return np.load(stem.with_suffix(".npy")), json.loads(stem.with_suffix(".json").read_text())
    pixels, facts = np.empty((n_scenes, 4, 64, 64, 3), np.uint8), []
    draw = partial(draw_scene, seed * SCENES_PER_SEED)
    with get_context("spawn").Pool(workers) if workers > 1 else nullcontext() as pool:
        for i, (x, f) in enumerate(
            pool.imap(draw, range(n_scenes), chunksize=100) if pool else map(draw, range(n_scenes))
        ):
            pixels[i] = x
            facts.append(f)
    np.save(stem.with_suffix(".npy"), pixels)
    stem.with_suffix(".json").write_text(json.dumps(facts))
    return pixels, facts


def augment(pixels, rng):
    """Mirrors and shifts a batch by up to 3 pixels, each picture by itself; (B, H, W, 3) uint8 in and out."""
    out = np.empty_like(pixels)
    padded = np.pad(pixels, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    size = pixels.shape[1]
    for i, (dx, dy, flip) in enumerate(rng.integers([0, 0, 0], [7, 7, 2], (len(pixels), 3))):
        x = padded[i, dy : dy + size, dx : dx + size]
        out[i] = x[:, ::-1] if flip else x
    return out


def to_input(pixels):
    """(B, 3, H, W) float32 normalised as the encoder's own preprocess does, from (B, H, W, 3) uint8."""
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return (x - PREPROCESS["mean"][0]) / PREPROCESS["std"][0]


def save_clip(model, folder):
    """Writes open_clip_config.json and open_clip_model.safetensors (fp16) into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: (v.detach().half() if v.is_floating_point() else v).contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "tmp.safetensors", metadata={"format": "pt"})
    (folder / "tmp.safetensors").chmod(0o644)
    (folder / "tmp.safetensors").replace(folder / "open_clip_model.safetensors")


def build(seed):
    """The untrained encoder, the projection of the same-scene terms and the heads of the plausible term."""
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(**MODEL, output_dict=True)
    head = nn.Linear(MODEL["embed_dim"], 128, bias=False)
    plausible = nn.Linear(MODEL["embed_dim"], len(FAMILIES))
    return nn.ModuleDict({"clip": model, "head": head, "plausible": plausible})


def losses(both, pixels, facts, rng):
    """All terms on one batch of pictures; returns (total, dict of floats)."""
    told = [caption(rng, f["family"], f["error"], f["variant"], f) for f in facts]
    true = torch.from_numpy(truth_of_captions(facts, [c for _, c in told]))
    image = F.normalize(both["clip"].encode_image(to_input(augment(pixels, rng))), dim=-1)
    text = F.normalize(both["clip"].encode_text(tokenizer()([t for t, _ in told])), dim=-1)
    words = caption_loss(both["clip"].logit_scale.exp() * image @ text.T, true)
    same, twin = scene_losses(F.normalize(both["head"](image), dim=-1))
    parts = {"caption": words, "same": same, "twin": twin}
    parts |= {"hard": hard_negative_loss(both, image, facts, rng), "plausible": plausible_loss(both, image, facts)}
    total = sum(weight * parts[name] for name, weight in WEIGHTS.items())
    return total, {name: value.item() for name, value in parts.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the encoder and its checkpoint")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--scenes", type=int, default=12600)
    parser.add_argument("--batch", type=int, default=128, help="pictures per step, four per scene")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=100_000, help="at least 100,000: disjoint from every data set")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--stop-after", type=int, default=None, help="stop early at this step; run again to continue")
    args = parser.parse_args(argv)
    if args.seed < 100_000 or args.batch % 4:
        parser.error(f"--seed = {args.seed} must be at least 100000 and --batch = {args.batch} a multiple of 4")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    pixels, facts = draw_scenes(args.scenes, args.seed, args.threads, args.out)
    print(f"drew {len(pixels) * 4} pictures in {time.time() - start:.0f} s", flush=True)

    both = build(args.seed % 2**31)
    decayed = [p for p in both.parameters() if p.ndim > 1]
    other = [p for p in both.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": other, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.98))
    warm = max(1, args.steps // 12)
    checkpoint, step, spent = args.out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        both.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["seconds"]
        print(f"continues at step {step}", flush=True)
    n, per_epoch = args.batch // 4, args.scenes // (args.batch // 4)
    start, mean = time.time(), {}
    while step < min(args.steps, args.stop_after or args.steps):
        order = np.random.default_rng([args.seed, 5, step // per_epoch]).permutation(args.scenes)
        pick = order[step % per_epoch * n :][:n]
        rng = np.random.default_rng([args.seed, 6, step])
        at = step / warm if step < warm else 0.5 + 0.5 * np.cos(np.pi * (step - warm) / (args.steps - warm))
        for group in optimizer.param_groups:
            group["lr"] = args.lr * (0.02 + 0.98 * float(at))
        total, parts = losses(both, pixels[pick].reshape(-1, 64, 64, 3), [f for i in pick for f in facts[i]], rng)
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            both["clip"].logit_scale.clamp_(0, np.log(50))
        step += 1
        mean = {k: 0.95 * mean.get(k, v) + 0.05 * v for k, v in parts.items()}
        if step % 20 == 0:
            rate = 20 * args.batch / (time.time() - start)
            spent, start = spent + time.time() - start, time.time()
            print(
                f"step {step} " + " ".join(f"{k} {v:.3f}" for k, v in mean.items()) + f" {rate:.0f} images/s",
                flush=True,
            )
        if step % args.save_every == 0 or step == args.steps:
            saved = {"model": both.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "seconds": spent}
            torch.save(saved, args.out / "checkpoint.tmp")
            (args.out / "checkpoint.tmp").replace(checkpoint)
            save_clip(both["clip"], args.out)
            cost = {
                "steps": step,
                "batch": args.batch,
                "pictures_seen": step * args.batch,
                "scenes": args.scenes,
                "pictures_drawn": args.scenes * 4,
            }
            cost |= {
                "minutes_of_training": round(spent / 60, 1),
                "threads": args.threads,
                "finished": step == args.steps,
            }
            (args.out / "training.json").write_text(json.dumps(cost, indent=2) + "\n")


if __name__ == "__main__":
    main()
