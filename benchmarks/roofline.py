"""What bounds a training step here: bytes and flops of every pass against what this machine does.

    ./run_all.sh bench roofline [--rounds 15]

One thread. First the machine: the dense product of each shape, a copy, and gathered rows (torch's embedding bag over the table
of the shape). Then each pass of a step by its bytes or flops at those rates, their sum, and the step as measured, all interleaved.
Writes benchmarks/roofline-<processor>.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks import as_in_training
from benchmarks._report import processor, results_of
from benchmarks._timing import interleaved
from benchmarks.speed import ours, unit_rows
from mtlib.coders.sparse_coder import SparseCoderConfig
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import write_text

HERE = Path(__file__).resolve().parent
TOPK = [(512, 4096, 1024, 32), (512, 4096, 4096, 32), (768, 6144, 1024, 32), (768, 12288, 1024, 32)]
PUBLISHED = [32, 256]  # rows per step of the published Matryoshka Transcoder
FLOAT = 4  # bytes
COPIED = 1 << 24  # floats


def rates(x: torch.Tensor, S: int, pairs: int) -> dict[str, tuple]:
    """name -> (a step, its work): the product x @ W in flops, a copy in bytes, gathered rows in bytes."""
    enc, table = torch.randn(x.shape[1], S), torch.randn(S, x.shape[1])
    a, b = torch.randn(COPIED), torch.randn(COPIED)
    item, start = torch.randint(S, (pairs,)), torch.arange(0, pairs, max(1, pairs // len(x)))
    weight = torch.randn(pairs)
    bag = torch.ops.aten._embedding_bag_forward_only
    return {
        "product": (lambda: x @ enc, 2 * x.numel() * S),
        "copy": (lambda: b.copy_(a), 2 * COPIED * FLOAT),
        "gather": (lambda: bag(table, item, start, False, 0, False, weight), pairs * x.shape[1] * FLOAT),
    }


def topk_passes(D: int, S: int, B: int, k: int) -> list[tuple[str, str, float]]:
    """(pass, rate that bounds it, its work) of a TopK step: flops of the product, bytes of all else."""
    rows, weights = B * k * D * FLOAT, 2 * D * S * FLOAT
    return [
        ("pre-activations x W_enc", "product", 2.0 * B * D * S),
        ("selection: maxima of groups, comparison", "copy", 2.0 * B * S * FLOAT),
        ("decode: decoder rows of the pairs", "gather", rows),
        ("gradient of the codes: the same rows", "gather", rows),
        ("gradient of W_dec: rows of the error", "gather", rows),
        ("gradient of W_enc: rows of x", "gather", rows),
        ("gradients, written", "copy", weights),
        ("AdamW: four tensors read, three written", "copy", 7.0 * weights),
    ]


def transcoder_passes(config: SparseCoderConfig, B: int) -> list[tuple[str, str, float]]:
    """The same of the published Matryoshka Transcoder, whose 496 active latents make dense products the quicker way."""
    D, S, O, levels = config.d_in, config.n_latents, config.d_out, sum(config.levels)  # noqa: E741
    weights = (D * S + levels * O) * FLOAT
    return [
        ("pre-activations x W_enc", "product", 2.0 * B * D * S),
        ("selection: partition, mask, product", "copy", 5.0 * B * S * FLOAT),
        ("decode of five levels", "product", 2.0 * B * levels * O),
        ("gradient of the codes, five levels", "product", 2.0 * B * levels * O),
        ("gradients of five decoders", "product", 2.0 * B * levels * O),
        ("gradient of W_enc", "product", 2.0 * B * D * S),
        ("gradients, written", "copy", float(weights)),
        ("AdamW: four tensors read, three written", "copy", 7.0 * weights),
    ]


def table(passes: list[tuple[str, str, float]], machine: dict[str, tuple], step, rounds: int) -> tuple[list[dict], str]:
    """Lines of a step's passes, and the machine's rates in words."""
    seconds = interleaved({name: run for name, (run, _) in machine.items()} | {"step": step}, rounds)
    took = {name: float(np.median(s)) for name, s in seconds.items()}
    rate = {name: work / took[name] for name, (_, work) in machine.items()}
    lines = [{"pass": name, "work": _work(kind, work), "ms": 1e3 * work / rate[kind]} for name, kind, work in passes]
    bound = sum(line["ms"] for line in lines)
    lines.append({"pass": "all passes at these rates", "work": "", "ms": bound})
    lines.append({"pass": "the step, measured", "work": "", "ms": 1e3 * took["step"]})
    floor = 1e3 * passes[0][2] / rate["product"]
    said = f"product {rate['product'] / 1e9:.0f} GFLOP/s, copy {rate['copy'] / 1e9:.1f} GB/s, gathered rows {rate['gather'] / 1e9:.1f} GB/s. "
    said += f"Product / step: at most {floor / bound:.2f} by these passes, {floor / (1e3 * took['step']):.2f} measured."
    return lines, said


def _work(kind: str, work: float) -> str:
    return f"{work / 1e9:.2f} GFLOP" if kind == "product" else f"{work / 2**20:.0f} MiB"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench roofline", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    parts = [f"# What bounds a training step on {processor()}", "", *__doc__.splitlines()[2:-1], ""]
    for D, S, B, k in TOPK:
        x = unit_rows(B, D)
        found = table(topk_passes(D, S, B, k), rates(x, S, B * k), ours(x, n_latents=S, ks=(k,)), rounds)
        parts += [f"## TopK, D {D}, S {S}, B {B}, k {k}", "", found[1], "", markdown_table(pd.DataFrame(found[0])), ""]
    for B in PUBLISHED:
        config = SparseCoderConfig.preset("matryoshka_transcoder", 768, 256)
        x, y = torch.randn(B, config.d_in), torch.randn(B, config.d_out).relu()
        settings = config.model_dump(exclude={"d_in", "d_out"})
        found = table(transcoder_passes(config, B), rates(x, config.n_latents, B * 32), ours(x, y, **settings), rounds)
        parts += [
            f"## Matryoshka Transcoder as published, B {B}",
            "",
            found[1],
            "",
            markdown_table(pd.DataFrame(found[0])),
            "",
        ]
    path = results_of(HERE, processor())
    write_text(
        path.with_name(path.name.replace("results-", "roofline-").replace(".json", ".md")), "\n".join(parts) + "\n"
    )
    print("\n".join(parts))
    return 0


if __name__ == "__main__":
    as_in_training()
    sys.exit(main())
