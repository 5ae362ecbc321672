"""What training and embedding do on a GPU: speed against others, equality with the CPU, in eight minutes.

    ./run_all.sh prove gpu [--seconds 480] [--dry]          on a bare machine with torch: python3 -m proofs.gpu

Installs what it needs if a package registry is there (pip's own settings apply, so PIP_NO_INDEX=1 PIP_FIND_LINKS=<folder>
takes wheels); what cannot be had is left out and named. Sections, each with a share of the time: the encoder's product
against the device's own matmul; sums over pairs by kernels and by products; training steps (benchmarks/gpu.py); equality
with the CPU; embedding by a ViT-L-14 with random weights. Writes results/gpu.json after every section, and results/gpu.md.
--dry: every section at tiny sizes on the CPU in a minute, Triton by its interpreter; nothing is written into results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from proofs import RESULTS

NEEDED = {
    "pydantic": "pydantic>=2.7",
    "open_clip": "open_clip_torch>=3.0",
    "pyarrow": "pyarrow>=15",
    "safetensors": "safetensors",
}
NEEDED |= {"pandas": "pandas", "sklearn": "scikit-learn", "tqdm": "tqdm", "timm": "timm", "torchvision": "torchvision"}
PEERS = {"sparsify": "eai-sparsify>=1.3", "overcomplete": "overcomplete>=0.3", "sae_lens": "sae-lens>=6.54"}
PEERS |= {"dictionary_learning": "dictionary-learning>=0.1"}
SHARES = {"product": 0.04, "pairs": 0.06, "equal": 0.15, "embedding": 0.2, "steps": 0.55}  # of the time that is left
EXACT, SAME_FVU = (
    1e-3,
    0.02,
)  # largest relative difference of a gradient in float32; difference of the FVU of a short training


def install(until: float) -> dict[str, str]:
    """Ask pip for what is missing; torch itself stays as it is. Returns: package -> "there", "installed" or "missing"."""
    missing = {n: r for n, r in (NEEDED | PEERS).items() if importlib.util.find_spec(n) is None}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as keep:
        keep.write(f"torch=={torch.__version__.partition('+')[0]}\n")
        keep.flush()
        for requirement in missing.values():
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "-q",
                "--retries",
                "0",
                "--timeout",
                "5",
                "-c",
                keep.name,
            ]
            try:
                subprocess.run([*command, requirement], timeout=max(1, until - time.monotonic()), check=False)
            except subprocess.TimeoutExpired:
                break
    importlib.invalidate_caches()
    there = {n: importlib.util.find_spec(n) is not None for n in NEEDED | PEERS}
    return {n: ("installed" if n in missing else "there") if ok else "missing" for n, ok in there.items()}


def milliseconds(call: Callable[[], object], seconds: float = 0.5) -> float:
    from benchmarks._timing import on_device

    gpu = torch.cuda.is_available()
    return float(sorted(times := on_device(call, seconds, *(() if gpu else (1, 0))))[len(times) // 2])


def product(dry: bool, until: float) -> dict:
    """TFLOP/s of the encoder's product at every shape against a square product of the device's own matmul."""
    device, found, names = "cpu" if dry else "cuda", [], {"tf32": torch.float32, "bf16": torch.bfloat16}
    torch.backends.cuda.matmul.allow_tf32 = True
    for name, dtype in names.items():
        n, D = (64, 16) if dry else (8192, 768)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        own = 2 * n**3 / milliseconds(lambda a=a, b=b: a @ b) / 1e9
        for S in (64,) if dry else (6144, 12288, 49152):
            for B in (8,) if dry else (4096, 16384):
                x, enc = (
                    torch.randn(B, D, device=device),
                    torch.randn(S, D, device=device).T,
                )  # as a coder's lies in memory
                ms = milliseconds(lambda x=x, enc=enc, dtype=dtype: x.to(dtype) @ enc.to(dtype))
                rate = 2 * B * D * S / ms / 1e9
                found.append(
                    {"precision": name, "S": S, "B": B, "tflops": rate, "matmul_tflops": own, "share": rate / own}
                )
    goals = [
        {
            "what": f"encoder product, {r['precision']}, S {r['S']}, B {r['B']}",
            "against": "a square matmul",
            "value": r["share"],
        }
        for r in found
    ]
    return {"rows": found, "goals": [g | {"goal": 0.7} for g in goals]}


def three_sums(of_pairs: tuple, weight: torch.Tensor, table: torch.Tensor, g: torch.Tensor) -> None:
    from mtlib.coders.fast import pairs as P

    own = P.Pairs(*of_pairs)
    P.bag_sums(own, weight, table)
    P.pair_dots(own, g, table)
    P.item_sums(own, weight, g)


def pairs(dry: bool, until: float) -> dict:
    """Decode and both gradients of the codes and the decoder, by kernels and by products: where the rule should lie."""
    from benchmarks.gpu import stand_in
    from mtlib.coders.fast import pairs as P

    device, found = "cpu" if dry else "cuda", []
    B, S, D = (4, 32, 8) if dry else (4096, 12288, 768)
    table, g = torch.randn(S, D, device=device), torch.randn(B, D, device=device)
    for k in (2,) if dry else (16, 32, 64, 128, 256, 512):
        item = torch.rand(B, S, device=device).topk(k).indices.sort(1).values.flatten()
        bag, weight = torch.arange(B, device=device).repeat_interleave(k), torch.rand(B * k, device=device)
        row: dict = {"density": k / S}
        for precision, rounding in {"tf32": None, "bf16": torch.bfloat16}.items():
            for way, share in {"kernels": 2.0, "products": 0.0}.items():
                before, P.DENSE_FROM = P.DENSE_FROM, dict.fromkeys(P.DENSE_FROM, share)
                call = partial(three_sums, (bag, item, B, S, rounding), weight, table, g)
                with stand_in(dry):
                    row[f"{way}, {precision}"] = milliseconds(call)
                P.DENSE_FROM = before
        found.append(row)
    return {"rows": found, "rule": P.DENSE_FROM}


def steps(dry: bool, until: float) -> dict:
    """benchmarks/gpu.py."""
    from benchmarks import gpu

    rows = list(gpu.table(until - time.monotonic(), dry))
    failed = [r["method"] for r in rows if r["method"] in gpu.OURS and not r["ms"]]
    goals = gpu.verdicts(rows) + [{"what": f"{name} runs", "against": "", "value": 0, "goal": 1} for name in failed]
    return {"rows": rows, "goals": goals}


def equal(dry: bool, until: float) -> dict:
    """One loss with its gradients in float32, and one short training, on the CPU and on the GPU."""
    import numpy as np

    from benchmarks.gpu import rows_like_clip, stand_in
    from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
    from mtlib.learn.config import TrainConfig
    from mtlib.learn.train import fit, summary

    D, S, N = (8, 32, 40) if dry else (128, 2048, 20_000)
    x, found, goals = rows_like_clip(N, D, "cpu"), [], []
    kinds = {"TopK": dict(ks=(3,)), "BatchTopK": dict(selection="batch_topk", ks=(3,))}
    kinds["MSAE nested"] = dict(selection="nested_topk", ks=(2, 8, S), decoder="shared")
    for name, settings in kinds.items():
        config, results = SparseCoderConfig(d_in=D, d_out=D, n_latents=S, **settings), {}
        for side in ("cpu", "gpu"):
            device, gpu = ("cuda" if side == "gpu" and not dry else "cpu"), side == "gpu"
            coder, some = SparseCoder(config).to(device).train(), x[: 2 if dry else 512].to(device)
            how = TrainConfig(
                steps=2 if dry else 300, batch=2 if dry else 512, val_every=0, device=device, precision="float32"
            )
            with tempfile.TemporaryDirectory() as tmp, stand_in(dry and gpu):
                torch.backends.cuda.matmul.allow_tf32 = False
                coder.loss(some, some)[0].backward()
                grads = [p.grad.cpu().double() for p in coder.parameters() if p.grad is not None]
                fit(config, x.numpy(), None, np.arange(N * 4 // 5), np.arange(N * 4 // 5, N), how, Path(tmp))
                results[side] = grads, summary(Path(tmp))["fvu"]
        (cpu, fvu_cpu), (gpu, fvu_gpu) = results["cpu"], results["gpu"]
        off = max(float((a - b).norm() / b.norm().clamp_min(1e-12)) for a, b in zip(gpu, cpu, strict=True))
        found.append({"kind": name, "gradient_difference": off, "fvu_cpu": fvu_cpu, "fvu_gpu": fvu_gpu})
        same = off <= EXACT and abs(fvu_gpu - fvu_cpu) <= SAME_FVU
        goals.append({"what": f"{name}: CPU and GPU equal", "against": "", "value": float(same), "goal": 1})
    return {"rows": found, "goals": goals}


def embedding(dry: bool, until: float) -> dict:
    """Images/s of the whole embedding, decoding in threads, against the model's own forward pass."""
    import open_clip

    from mtlib.embed.encoders import Encoder
    from proofs.throughput_embedding import TINY, measure, random_clip, write_images

    found = []
    with tempfile.TemporaryDirectory() as tmp:
        root, width = (
            Path(tmp),
            TINY if dry else open_clip.get_model_config("ViT-L-14")["vision_cfg"] | {"image_size": 224},
        )
        name = random_clip(root / "clip", width, 64 if dry else 768)
        n, batch, workers = (8, 4, 1) if dry else (2048, 256, os.cpu_count() or 2)
        write_images(root / "images", n, 64 if dry else 256, "jpg")
        for precision in ("float32",) if dry else ("bf16", "float32"):
            if found and time.monotonic() > until:
                break
            encoder = Encoder.load(name, device="cpu" if dry else "cuda", precision=precision)
            ms = measure(encoder, root / "images", batch, 1 if dry else 2, workers).median()
            speeds = {"images_per_second": 1000 / ms["embed_wall"], "forward_alone": 1000 / ms["forward_wall"]}
            found.append({"precision": precision} | speeds | {"share": ms["forward_wall"] / ms["embed_wall"]})
    goals = [
        {"what": f"embedding, {r['precision']}", "against": "forward alone", "value": r["share"], "goal": 0.9}
        for r in found
    ]
    return {"rows": found, "goals": goals}


SECTIONS = {"product": product, "pairs": pairs, "equal": equal, "embedding": embedding, "steps": steps}


def report(found: dict) -> str:
    """The Markdown page: goals first, then the rows of every section."""
    from benchmarks.gpu import HEAD, line

    text = [
        f"# On {found['device']}",
        "",
        f"torch {found['torch']}; {found['seconds']:.0f} s. Left out: {found['left_out'] or 'nothing'}.",
        "",
    ]
    text += ["| what | against | goal | measured | |", "|---|---|--:|--:|---|"]
    for goal in (g for part in found["sections"].values() for g in part.get("goals", ())):
        met = "met" if goal["value"] >= goal["goal"] else "missed"
        text.append(f"| {goal['what']} | {goal['against']} | {goal['goal']:g} | {goal['value']:.2f} | {met} |")
    for name, part in found["sections"].items():
        text += ["", f"## {name}", "", *([f"Failed: {part['failed']}", ""] if "failed" in part else ())]
        rows = part.get("rows", [])
        if name == "steps":
            text += [*HEAD, *map(line, rows)]
        elif rows:
            text += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
            text += [
                "| " + " | ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in r.values()) + " |"
                for r in rows
            ]
    return "\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="prove gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    start = time.monotonic()
    end = start + args.seconds - 15  # what is in work may take a little longer
    if args.dry:
        os.environ["TRITON_INTERPRET"] = "1"
    elif not torch.cuda.is_available():
        print("prove gpu: no GPU here; --dry runs every section on the CPU", file=sys.stderr)
        return 2
    packages = {} if args.dry else install(start + 0.2 * args.seconds)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp) if args.dry else RESULTS
        found = {
            "device": "the CPU, a dry run" if args.dry else torch.cuda.get_device_name(),
            "torch": torch.__version__,
        }
        found |= {"left_out": ", ".join(n for n, state in packages.items() if state == "missing"), "sections": {}}
        for name, section in SECTIONS.items():
            left = sum(SHARES[n] for n in SECTIONS if n not in found["sections"])
            until = time.monotonic() + (end - time.monotonic()) * SHARES[name] / left
            try:
                found["sections"][name] = section(args.dry, until)
            except Exception as e:  # what a section cannot do is told, and the others run
                traceback.print_exc()
                found["sections"][name] = {"failed": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}
            found["seconds"] = time.monotonic() - start
            print(f"{name}: {found['seconds']:.0f} s", flush=True)
            (folder / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (folder / "gpu.md").write_text(report(found), encoding="utf-8")
        print((folder / "gpu.md").read_text(encoding="utf-8"))
    goals = [g for part in found["sections"].values() for g in part.get("goals", ())]
    speed = args.dry  # a dry run says that everything runs and is equal, not how fast
    bad = [g for g in goals if g["value"] < g["goal"] and not (speed and g["goal"] != 1)]
    return 1 if bad or any("failed" in part for part in found["sections"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
