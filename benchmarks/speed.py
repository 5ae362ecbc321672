"""Our training steps and measures against other libraries, published steps, a dense reference and the floor.

    ./run_all.sh bench speed [--only WORD] [--rounds 15] [--quick]

One process, one thread, all methods in turn in every round (two steps, the second timed), medians of process CPU time.
Every method gets the same fused AdamW; "own optimiser" rows are the peers' own steps.
Writes benchmarks/results-<processor>.json and benchmarks/README.md.
--only runs some of it, and keeps the other rows. --quick: small shapes, our own part only, nothing written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import as_in_training, published
from benchmarks._report import processor, results_of, write_report
from benchmarks._timing import Step, interleaved, rows, training_step
from mtlib.coders.presets import coder_settings
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.measure.monosemanticity import MonoScore
from mtlib.measure.scan import TopK
from mtlib.run.artifacts import write_json

HERE = Path(__file__).resolve().parent
AGREEMENT = 1e-6
ORDER = ("TopK step", "BatchTopK step", "prefix Matryoshka step", "MSAE nested step", "Matryoshka Transcoder step")
TIMED = "the second of two steps in a turn, memory kept as in training"
DENSITY = 0.03  # of the JumpReLU codes


def mono_score(x, z):
    """(S,) MonoScore of codes z (N, S) with embeddings x (N, D), both arrays, in one batch."""
    sums = MonoScore(z.shape[1], x.shape[1])
    sums.update(torch.from_numpy(x), torch.from_numpy(z))
    return sums.scores()


def unit_rows(n: int, D: int, seed: int = 0) -> torch.Tensor:
    """(n, D) float32 rows of norm 1, like CLIP embeddings, around a few hundred centres."""
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(256, D, generator=g)[torch.randint(256, (n,), generator=g)]
    return F.normalize(centres + torch.randn(n, D, generator=g), dim=-1)


def ours(x: torch.Tensor, y: torch.Tensor | None = None, fast: str = "auto", **settings) -> Step:
    """A step of our coder with these settings."""
    y = x if y is None else y
    coder = SparseCoder(SparseCoderConfig(d_in=x.shape[1], d_out=y.shape[1], **settings)).train()
    coder.fast = fast
    if coder.theta is not None:
        with torch.no_grad():
            z_pre = coder._pre(x)
            coder.theta.fill_(float(np.quantile(z_pre.numpy(), 1 - DENSITY)))
    return training_step(lambda: coder.loss(x, y)[0], coder.named_parameters())


def _pair(x, y=None, **settings) -> dict[str, Step]:
    return {"ours": ours(x, y, **settings), "dense reference": ours(x, y, "off", **settings)}


def _floor(x: torch.Tensor, S: int) -> dict[str, Step]:
    enc = torch.randn(x.shape[1], S)
    return {"floor: x @ W_enc": lambda: x @ enc}


def topk(quick: bool) -> Iterator[tuple]:
    """TopK, k = 32."""
    shapes = (
        [(64, 512, 128)] if quick else [(512, 4096, 1024), (512, 4096, 4096), (768, 6144, 1024), (768, 12288, 1024)]
    )
    for D, S, B in shapes:
        x, k = unit_rows(B, D), 32 if not quick else 4
        steps = _pair(x, n_latents=S, ks=(k,)) | _floor(x, S)
        if B > 1024:  # the floor is what is asked of a large batch
            yield "TopK step", f"D {D}, S {S}, B {B}, k {k}", B, steps
            continue
        steps["MSAE TopK (published)"] = training_step(*published.msae(x, S, (k,)))
        steps["MonoLoss TopK (published)"] = training_step(*published.monoloss(x, S, k, weight=0))
        if not quick:
            from benchmarks import _peers as peers

            for peer in (peers.sparsify_topk, peers.overcomplete_topk, peers.sae_lens_topk, peers.dictionary_topk):
                steps |= peer(x, S, k)
        yield "TopK step", f"D {D}, S {S}, B {B}, k {k}", B, steps


def batch_topk(quick: bool) -> Iterator[tuple]:
    """BatchTopK and prefix Matryoshka, k = 32 per row."""
    D, S, B, k = (64, 512, 128, 4) if quick else (512, 4096, 1024, 32)
    x, levels = unit_rows(B, D), tuple(S // 2**i for i in (4, 3, 2, 1, 0))
    flat = _pair(x, n_latents=S, selection="batch_topk", ks=(k,)) | _floor(x, S)
    nested = _pair(x, n_latents=S, selection="batch_topk", ks=(k,), levels=levels, decoder="shared") | _floor(x, S)
    if not quick:
        from benchmarks import _peers as peers

        for peer in (peers.overcomplete_batch_topk, peers.sae_lens_batch_topk, peers.dictionary_batch_topk):
            flat |= peer(x, S, k)
        for peer in (peers.sae_lens_matryoshka, peers.dictionary_matryoshka):
            nested |= peer(x, levels, k)
    yield "BatchTopK step", f"D {D}, S {S}, B {B}, k {k}", B, flat
    yield "prefix Matryoshka step", f"D {D}, S {S}, B {B}, k {k}, 5 levels", B, nested


def msae(quick: bool) -> Iterator[tuple]:
    """MSAE's nested k, doubling up to all latents."""
    D, S, B, first = (64, 512, 64, 8) if quick else (512, 4096, 1024, 64)
    ks = tuple(k for k in (first * 2**i for i in range(20)) if k <= S)
    x = unit_rows(B, D)
    settings = dict(n_latents=S, selection="nested_topk", ks=ks, decoder="shared", pre_bias="decoder")
    steps = _pair(x, **settings) | {"MSAE (published)": training_step(*published.msae(x, S, ks))}
    yield "MSAE nested step", f"D {D}, S {S}, B {B}, k {ks[0]}..{ks[-1]}", B, steps


def transcoder(quick: bool) -> Iterator[tuple]:
    """The published Matryoshka Transcoder: 768 -> 256, 2048 latents, up to 496 active."""
    for B in (32,) if quick else (32, 256):
        config = SparseCoderConfig.preset("matryoshka_transcoder", 64 if quick else 768, 32 if quick else 256)
        x, y = torch.randn(B, config.d_in), torch.randn(B, config.d_out).relu()
        names = ("n_latents", "activation", "penalty", "penalty_weight", "selection", "levels", "ks", "level_weights")
        steps = _pair(x, y, target="y", decoder="own", **{n: getattr(config, n) for n in names})
        other = published.matryoshka_transcoder(x, y, config.levels, config.ks, config.level_weights)
        steps["Matryoshka Transcoder (published)"] = training_step(*other)
        yield "Matryoshka Transcoder step", f"D {config.d_in}, O {config.d_out}, S 2048, B {B}", B, steps


def jumprelu(quick: bool) -> Iterator[tuple]:
    """JumpReLU with learned thresholds, 3% of the latents active."""
    D, S, B = (64, 512, 128) if quick else (512, 4096, 1024)
    x = unit_rows(B, D)
    steps = _pair(
        x, n_latents=S, selection="none", activation="jumprelu", penalty="l0_rectangle", penalty_weight=1e-3
    ) | _floor(x, S)
    if not quick:
        from benchmarks import _peers as peers

        for peer in (peers.sae_lens_jumprelu, peers.dictionary_jumprelu):
            steps |= peer(x, S, DENSITY)
    yield "JumpReLU step", f"D {D}, S {S}, B {B}, density {DENSITY}", B, steps


def monoloss(quick: bool) -> Iterator[tuple]:
    """MonoLoss as a term of a TopK step ("ours" has the term), and its whole step as published."""
    D, S, B, k = (64, 512, 128, 4) if quick else (512, 4096, 1024, 32)
    x = unit_rows(B, D)
    steps = {"ours": ours(x, n_latents=S, ks=(k,), mono_weight=0.1), "without the term": ours(x, n_latents=S, ks=(k,))}
    yield "MonoLoss as a term", f"D {D}, S {S}, B {B}, k {k}", B, steps
    steps = _pair(x, **coder_settings("monoloss_topk", k, n_latents=S))
    steps["MonoLoss TopK (published)"] = training_step(*published.monoloss(x, S, k))
    yield "MonoLoss step as published", f"D {D}, S {S}, B {B}, k {k}", B, steps


def monoscore(quick: bool) -> Iterator[tuple]:
    """MonoScore of all latents over a split; the pairwise score of some latents, its time scaled to all."""
    some, few = 32, 4000  # latents and rows of which the pairwise score is asked
    shapes = [(200, 32, 256, 8)] if quick else [(4000, 512, 4096, 32), (4000, 512, 8192, 64), (100_000, 512, 1024, 8)]
    for N, D, S, k in shapes:
        x = unit_rows(N, D)
        coder = SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=S, ks=(k,))).eval()
        with torch.no_grad():
            z = torch.cat([coder.encode(part) for part in x.split(4096)])
        first = x[:few].double(), z[:few, :some].double()
        pairwise = published.mono_score_pairwise(*first).numpy()
        found = mono_score(*(a.numpy() for a in first))
        known = np.isfinite(found)
        error = float(np.abs(found - pairwise)[known].max())
        if error > AGREEMENT or not known.any():
            raise AssertionError(f"MonoScore differs from the pairwise score by {error}")
        print(f"MonoScore agrees with the pairwise score to {error:.1e}")
        steps = {
            "ours": lambda x=x, z=z: mono_score(x.numpy(), z.numpy()),
            "linear (published)": lambda x=x, z=z: published.mono_score(x, z),
        }
        if len(x) <= few:
            name = f"pairwise, {some} of {S} latents"
            steps[name] = lambda x=x, z=z: published.mono_score_pairwise(x, z[:, :some])
        yield "MonoScore over a split", f"N {N}, D {D}, S {S}, k {k}", N, steps


def top_images(quick: bool) -> Iterator[tuple]:
    """The 20 top images of every latent: one pass with O(S * top) memory, against all codes kept."""
    N, D, S, B = (512, 32, 256, 128) if quick else (16384, 512, 4096, 1024)
    x = unit_rows(N, D)
    coder = SparseCoder(SparseCoderConfig(d_in=D, d_out=D, n_latents=S, ks=(4 if quick else 32,))).eval()

    @torch.no_grad()
    def one_pass() -> None:
        top = TopK(S, 20)
        for start in range(0, N, B):
            top.update(coder.encode(x[start : start + B]), np.arange(start, start + B))

    @torch.no_grad()
    def keep_all() -> None:
        torch.cat([coder.encode(part) for part in x.split(B)]).topk(20, dim=0)

    kept = f"all codes kept ({N * S * 4 / 2**20:.0f} MiB; ours {S * 20 * 8 / 2**20:.1f} MiB)"
    yield "top images of every latent", f"N {N}, D {D}, S {S}, top 20", N, {"ours": one_pass, kept: keep_all}


GROUPS = (topk, batch_topk, msae, transcoder, jumprelu, monoloss, monoscore, top_images)


def measure(only: str, rounds: int, quick: bool) -> Iterator[list[dict]]:
    """The rows of one step after another. The pairwise score's time is scaled from some latents to all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for group in GROUPS:
        if only not in group.__name__:
            continue
        for what, shape, samples, steps in group(quick):
            seconds = interleaved(steps, rounds)
            for name in [n for n in seconds if n.startswith("pairwise, ")]:
                some, S = (int(word) for word in name.split() if word.isdigit())
                seconds["pairwise"] = seconds.pop(name) * (S / some)
            found = rows(what, shape, samples, seconds)
            for row in found:
                values = f"{row['samples_per_second']:>11.0f}/s  ours / theirs {row['ratio_of_ours']:.2f}"
                print(f"{what:<28} {shape:<38} {row['method']:<38} {values}", flush=True)
            yield found


def keep(found: list[dict], rounds: int) -> None:
    """Put what was measured now in the place of what an earlier run on this processor wrote about the same steps."""
    path = results_of(HERE, processor())
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    now = {(r["what"], r["shape"]) for r in found}
    order = {w: i for i, w in enumerate(ORDER)}
    rows = [r for r in earlier if (r["what"], r["shape"]) not in now] + found
    rows.sort(key=lambda r: order.get(r["what"], len(order)))
    write_json(
        path, {"processor": processor(), "torch": torch.__version__, "rounds": rounds, "timed": TIMED, "rows": rows}
    )
    every = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(HERE.glob("results-*.json"))]
    write_report(HERE / "README.md", every)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench speed", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"one of {', '.join(g.__name__ for g in GROUPS)}")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    steps = 0
    for found in measure(args.only, 2 if args.quick else args.rounds, args.quick):
        steps += 1
        if not args.quick:
            keep(found, args.rounds)
    if not steps:
        print(f"--only {args.only}: none of {', '.join(g.__name__ for g in GROUPS)}", file=sys.stderr)
    return 0 if steps else 2


if __name__ == "__main__":
    as_in_training()
    sys.exit(main())
