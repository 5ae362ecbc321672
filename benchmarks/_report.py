"""benchmarks/README.md from the rows of results.json: targets met or missed, then every figure."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

from mtlib.run.artifacts import write_text

PEERS = ("overcomplete", "sae-lens", "dictionary-learning")
# what, part of the shape, methods (the best of those found counts), least ours / theirs
TARGETS = (
    ("TopK step", "B 1024", ("eai-sparsify",), 1.4),
    ("TopK step", "B 1024", PEERS, 3.5),
    ("TopK step", "B 1024", ("MSAE TopK (published)",), 4.5),
    ("TopK step", "B 1024", ("floor: x @ W_enc",), 0.55),
    ("TopK step", "B 4096", ("floor: x @ W_enc",), 0.70),
    ("BatchTopK step", "", PEERS, 4.0),
    ("prefix Matryoshka step", "", PEERS, 4.0),
    ("MSAE nested step", "", ("MSAE (published)",), 2.3),
    ("Matryoshka Transcoder step", "B 32", ("Matryoshka Transcoder (published)",), 1.4),
    ("Matryoshka Transcoder step", "B 256", ("Matryoshka Transcoder (published)",), 1.2),
    ("JumpReLU step", "", PEERS, 3.0),
    ("MonoScore over a split", "", ("pairwise",), 100.0),
    ("MonoScore over a split", "", ("linear (published)",), 4.0),
    ("MonoLoss as a term", "", ("without the term",), 0.90),
)
BOUNDS = """\
What bounds a step: the floor is the one dense product x @ W_enc. Beside it a TopK step gathers decoder and encoder rows
four times (decode, the codes' gradient and both weights' gradients), selects, and writes every parameter once in AdamW.
At 496 of 2048 active latents gathers cost as much as dense products, so the Matryoshka Transcoder's step saves passes
over the codes only; at B = 32 the optimiser's pass over 2.6 million parameters, the same for everyone, is about a quarter of it.
"""


def processor() -> str:
    """The processor's model name, and nothing else about the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def verdicts(rows: list[dict]) -> list[tuple[str, str, str, float, float]]:
    """(what, shape, against, target, measured ours / best of theirs) of every target that was measured."""
    found = []
    for what, part, methods, least in TARGETS:
        for shape in dict.fromkeys(r["shape"] for r in rows if r["what"] == what and part in f"{r['shape']},"):
            theirs = [r for r in rows if (r["what"], r["shape"]) == (what, shape) and r["method"] in methods]
            if theirs:
                best = max(theirs, key=lambda r: r["samples_per_second"])
                found.append((what, shape, best["method"], least, best["ratio_of_ours"]))
    return found


def write_report(path: Path, rows: list[dict], rounds: int) -> None:
    """Write the Markdown table."""
    lines = [
        "# Speed, side by side",
        "",
        f"`./run_all.sh bench speed` on {processor()}: one process, one thread, PyTorch {torch.__version__}, medians of CPU",
        f'time over {rounds} interleaved rounds; every method with the same fused AdamW, "own optimiser" with the peer\'s.',
        "Ratios compare; absolute figures drift with the machine's load.",
        "",
        "| step | shape | against | target | ours / theirs | |",
        "|---|---|---|---:|---:|---|",
    ]
    for what, shape, against, least, ratio in verdicts(rows):
        lines.append(
            f"| {what} | {shape} | {against} | ≥ {least:g} | {ratio:.2f} | {'met' if ratio >= least else 'missed'} |"
        )
    lines += ["", *BOUNDS.splitlines(), "", "## Every figure", ""]
    lines += ["| step | shape | method | samples/s (quartiles) | ours / theirs |", "|---|---|---|---:|---:|"]
    for r in rows:
        low, high = r["quartiles"]
        rate = f"{r['samples_per_second']:.0f} ({low:.0f} to {high:.0f})"
        lines.append(f"| {r['what']} | {r['shape']} | {r['method']} | {rate} | {r['ratio_of_ours']:.2f} |")
    write_text(path, "\n".join(lines) + "\n")
