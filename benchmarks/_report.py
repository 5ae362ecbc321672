"""benchmarks/README.md from what results-<processor>.json hold: targets met or missed on each, then every figure."""

from __future__ import annotations

import platform
import re
from pathlib import Path

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
over the codes only; at B = 32 the optimiser's pass over 2.6 million parameters, the same for everyone, is a quarter to a half of it.
Where the product is quick (the Xeon), all that surrounds it weighs more. There the selection and the sums over pairs are numba's,
compiled before the first round.
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


def results_of(folder: Path, name: str) -> Path:
    """The file of a processor's results."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\(\w+\)", "", name.lower()))
    return folder / f"results-{'-'.join(w for w in words if w != 'processor')}.json"


def write_report(path: Path, found: list[dict]) -> None:
    """Write the Markdown tables: one row per target, one column per processor; then every figure.

    Args: found: what each results-<processor>.json holds: processor, torch, rounds, rows.
    """
    lines = ["# Speed, side by side", ""]
    lines += [
        "`./run_all.sh bench speed`: one process, one thread, medians of CPU time over interleaved rounds; every method with the same"
    ]
    lines += [
        "fused AdamW, \"own optimiser\" with the peer's. Ratios compare; absolute figures drift with the machine's load. A target that is"
    ]
    lines += ["missed on one processor is missed.", ""]
    lines += [
        f"- {one['processor']}: PyTorch {one['torch']}, {one['rounds']} rounds; {one.get('timed', 'one step in a turn')}"
        for one in found
    ]
    names = [one["processor"] for one in found]
    lines += [
        "",
        f"| step | shape | against | target | {' | '.join(names)} | |",
        f"|---|---|---|---:|{'---:|' * len(names)}---|",
    ]
    each = [{v[:2] + (v[3],): v for v in verdicts(one["rows"])} for one in found]
    for key in dict.fromkeys(key for own in each for key in own):
        own = [one.get(key) for one in each]
        against = ", ".join(dict.fromkeys(v[2] for v in own if v))
        ratios = " | ".join(f"{v[4]:.2f}" if v else "" for v in own)
        met = all(v[4] >= key[2] for v in own if v)
        lines.append(f"| {key[0]} | {key[1]} | {against} | ≥ {key[2]:g} | {ratios} | {'met' if met else 'missed'} |")
    lines += ["", *BOUNDS.splitlines()]
    roofs = sorted(path.parent.glob("roofline-*.md"))
    lines += [f"By how much, in bytes and flops: {', '.join(f'[{p.stem}]({p.name})' for p in roofs)}."] * bool(roofs)
    for one in found:
        lines += ["", f"## Every figure on {one['processor']}", ""]
        lines += ["| step | shape | method | samples/s (quartiles) | ours / theirs |", "|---|---|---|---:|---:|"]
        for r in one["rows"]:
            low, high = r["quartiles"]
            rate = f"{r['samples_per_second']:.0f} ({low:.0f} to {high:.0f})"
            lines.append(f"| {r['what']} | {r['shape']} | {r['method']} | {rate} | {r['ratio_of_ours']:.2f} |")
    write_text(path, "\n".join(lines) + "\n")
