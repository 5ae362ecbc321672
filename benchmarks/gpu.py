"""Training steps on a GPU against other libraries, published steps and a dense reference.

    ./run_all.sh bench gpu [--seconds 240] [--dry]

Every method of a shape gets the same rows on the same device in one process, products in tf32, the same fused AdamW;
milliseconds by the device's events. `./run_all.sh prove gpu` runs this table and more, and writes it down.
--dry: tiny shapes on a CPU, which stands in for the device.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import published
from benchmarks._timing import Step, on_device, training_step
from mtlib.coders import sparsity
from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig

D = 768
SHAPES = [(S, B, k) for k in (32, 64, 500) for B in (4096, 16384) for S in (6144, 12288, 49152)]
NESTED = [(6144, 4096, 64), (12288, 4096, 64)]  # k doubles from the last number up to all latents
GOALS = {"TopK step": 2.0, "BatchTopK step": 2.0, "MSAE nested step": 3.0}  # against the best of the others
OURS = ("ours", "ours, one CUDA graph", "ours, bf16", "dense reference")


@contextlib.contextmanager
def stand_in(dry: bool) -> Iterator[None]:
    """Products in tf32; dry: the CPU takes the path of a GPU."""
    before = sparsity.on_cpu, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    if dry:
        sparsity.on_cpu = lambda t: False
    try:
        yield
    finally:
        sparsity.on_cpu, torch.backends.cuda.matmul.allow_tf32 = before


def rows_like_clip(n: int, width: int, device: str) -> torch.Tensor:
    """(n, width) float32 rows of norm 1 around a few hundred centres."""
    g = torch.Generator(device).manual_seed(0)
    centres = torch.randn(256, width, generator=g, device=device)
    chosen = centres[torch.randint(256, (n,), generator=g, device=device)]
    return torch.nn.functional.normalize(chosen + torch.randn(n, width, generator=g, device=device), dim=-1)


def ours(x: torch.Tensor, fast: str = "auto", rounding: torch.dtype | None = None, **settings) -> Step:
    coder = SparseCoder(SparseCoderConfig(d_in=x.shape[1], d_out=x.shape[1], **settings)).to(x.device).train()
    coder.fast, coder.compute_dtype = fast, rounding
    return training_step(lambda: coder.loss(x, x)[0], coder.named_parameters())


def graphed(step: Step) -> Step:
    """The step recorded once and replayed: possible because nothing in it asks the device for a number."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def methods(what: str, x: torch.Tensor, S: int, k: int) -> dict[str, Callable[[], Step]]:
    """Method -> what makes its step. Each is made, measured and thrown away before the next."""
    from benchmarks import _peers as peers

    ks = tuple(k * 2**i for i in range(20) if k * 2**i <= S)
    settings = {
        "TopK step": dict(n_latents=S, ks=(k,)),
        "BatchTopK step": dict(n_latents=S, selection="batch_topk", ks=(k,)),
        "MSAE nested step": dict(n_latents=S, selection="nested_topk", ks=ks, decoder="shared", pre_bias="decoder"),
    }[what]
    own = {"ours": lambda: ours(x, **settings), "dense reference": lambda: ours(x, "off", **settings)}
    own["ours, bf16"] = lambda: ours(x, rounding=torch.bfloat16, **settings)
    if x.is_cuda:
        own["ours, one CUDA graph"] = lambda: graphed(ours(x, **settings))
    if what == "MSAE nested step":
        return own | {"MSAE (published)": lambda: _on(x, published.msae, x, S, ks)}
    names = {"overcomplete": "overcomplete", "sae-lens": "sae_lens", "dictionary-learning": "dictionary"}
    names |= {"eai-sparsify": "sparsify"} if what == "TopK step" else {}
    kind = "topk" if what == "TopK step" else "batch_topk"
    for label, name in names.items():
        own[label] = lambda name=name: next(iter(getattr(peers, f"{name}_{kind}")(x, S, k).values()))
    return own


def _on(x: torch.Tensor, make, *arguments) -> Step:
    with torch.device(x.device):
        return training_step(*make(*arguments))


def measured(make: Callable[[], Step], seconds: float) -> dict:
    """Milliseconds with quartiles and peak memory of a method, or why there is none."""
    gpu, row = torch.cuda.is_available(), {}
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    try:
        times = on_device(make(), seconds, *(() if gpu else (1, 0)))
        row = {"ms": float(np.median(times)), "quartiles_ms": [float(np.quantile(times, q)) for q in (0.25, 0.75)]}
        row["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
    except (RuntimeError, ImportError, AttributeError, TypeError, ValueError) as e:  # another library's, or no memory
        row = {"ms": None, "failed": f"{type(e).__name__}: {' '.join(str(e).split())[:200]}"}
    gc.collect()
    if gpu:
        torch.cuda.empty_cache()
    return row


def table(seconds: float, dry: bool) -> Iterator[dict]:
    """A row per method and shape, with the ratio theirs / ours, until the seconds are over."""
    until, device = time.monotonic() + seconds, "cpu" if dry else "cuda"
    shapes = [(what, *shape) for shape in SHAPES for what in ("TopK step", "BatchTopK step")]
    shapes[4:4] = [("MSAE nested step", *shape) for shape in NESTED]
    width = 16 if dry else D
    for what, S, B, k in (
        [("TopK step", 64, 2, 2), ("BatchTopK step", 64, 4, 2), ("MSAE nested step", 32, 2, 4)] if dry else shapes
    ):
        if time.monotonic() > until:
            yield {"what": what, "S": S, "B": B, "k": k, "method": "", "ms": None, "failed": "the time was over"}
            continue
        torch.manual_seed(0)
        x, base = rows_like_clip(B, width, device), None
        for method, make in methods(what, x, S, k).items():
            with stand_in(dry):
                row = {"what": what, "D": width, "S": S, "B": B, "k": k, "method": method} | measured(make, 0.7)
            if row["ms"]:
                base = row["ms"] if method == "ours" else base
                row |= {"rows_per_second": B * 1000 / row["ms"], "ratio": row["ms"] / base if base else None}
            yield row


def verdicts(rows: list[dict]) -> list[dict]:
    """For every shape: how many times as fast as the best of the others ours is, against its goal."""
    found = []
    for key in dict.fromkeys((r["what"], r["S"], r["B"], r["k"]) for r in rows):
        own = [r for r in rows if (r["what"], r["S"], r["B"], r["k"]) == key and r["ms"]]
        best = min((r for r in own if r["method"] not in OURS), key=lambda r: r["ms"], default=None)
        mine = next((r["ms"] for r in own if r["method"] == "ours"), None)
        if best and mine:
            shape = f"{key[0]}, S {key[1]}, B {key[2]}, k {key[3]}"
            found.append({"what": shape, "against": best["method"], "value": best["ms"] / mine, "goal": GOALS[key[0]]})
    return found


def line(row: dict) -> str:
    """A row as a line of a Markdown table."""
    shape = f"{row['what']} | {row['S']} | {row['B']} | {row['k']} | {row['method']}"
    if not row["ms"]:
        return f"| {shape} | | | | | {row['failed'].replace('|', '/')} |"
    low, high = row["quartiles_ms"]
    peak, ratio = (f"{row[n]:.2f}" if row[n] is not None else "" for n in ("peak_gb", "ratio"))
    return (
        f"| {shape} | {row['ms']:.2f} ({low:.2f} to {high:.2f}) | {row['rows_per_second']:.0f} | {peak} | {ratio} | |"
    )


HEAD = [
    "| step | S | B | k | method | ms (quartiles) | rows/s | peak GB | times ours | |",
    "|---|--:|--:|--:|---|--:|--:|--:|--:|---|",
]


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        print("bench gpu: no GPU here; --dry runs tiny shapes on the CPU", file=sys.stderr)
        return 2
    print(*HEAD, sep="\n")
    for row in table(args.seconds, args.dry):
        print(line(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
