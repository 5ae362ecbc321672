"""Every measure on 100,000 rows of 512 with 8,192 latents: its CPU seconds and its peak memory.

    ./run_all.sh prove scale [--rows 100000] [--latents 8192] [--only card]      --only: one process again, the others kept
    ./run_all.sh prove scale --latents 1024 --memory 50000 100000 200000         what 03 and 04 hold at each number of rows

The rows are made up (nine families, each with one cause, and a nuisance), the coder is a Matryoshka autoencoder with 64
active latents per row and random weights: what is measured is time and memory, not quality. Each group runs in a process
of its own, whose peak memory is read at its end. Writes proofs/results/scale.md and scale.json; with --memory scale_memory.md:
the memory of the process beyond the pages of the mapped file, at its peak, which the stages are to hold at any number of rows.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.store import Data
from mtlib.learn.classifier import Classifier
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit
from mtlib.measure.codes import CodeCounts, Subject, iter_codes, sparse_codes
from mtlib.measure.compare import scan_all
from mtlib.measure.logit import LogitChange, causal_relevance
from mtlib.measure.monosemanticity import MonoScore, Purity
from mtlib.measure.probes import ProbeShift, fit_probe
from mtlib.measure.reconstruction import Curve, Reconstruction, definitions, kept_sizes, largest, target_mean
from mtlib.measure.reconstruction import levels as at_levels
from mtlib.measure.relevance import permutation_null
from mtlib.measure.scan import activity, scan
from mtlib.measure.similarity import decoder_coherence, neighbours_kept, stability
from mtlib.measure.zero_shot import ZeroShot, ZeroShotDrop
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import versions, write_json, write_text
from mtlib.truth import attributes, causes

ROOT = Path(__file__).resolve().parents[1]
WIDTH, HIDDEN, FAMILIES = 512, 256, 9
LIMIT_GB, LIMIT_SECONDS = 4.0, 600


@dataclass
class Made:
    """The made-up data: x (N, D) memory-mapped, one line of truth per row, a coder and a classifier."""

    x: np.ndarray
    truth: pd.DataFrame
    coder: SparseCoder
    classifier: Classifier

    @property
    def rows(self) -> np.ndarray:
        return np.arange(len(self.x))


def coder(n_latents: int, seed: int = 0) -> SparseCoder:
    """A Matryoshka autoencoder with 64 active latents per row."""
    levels = tuple(n_latents // 2**i for i in (4, 3, 2, 1, 0))
    shape = dict(d_in=WIDTH, d_out=WIDTH, n_latents=n_latents, levels=levels, ks=(4, 8, 12, 16, 24))
    return SparseCoder(SparseCoderConfig(**shape, selection="block_topk"), seed).eval()


def write_rows(path: Path, n: int) -> None:
    """x.npy: family centre + cause + nuisance + noise, written in blocks."""
    rng, truth = np.random.default_rng(0), make_truth(n)
    x = np.lib.format.open_memmap(path, "w+", np.float32, (n, WIDTH))
    centres, causes, nuisances = (rng.normal(size=(k, WIDTH)).astype(np.float32) for k in (FAMILIES, FAMILIES, 4))
    family, nuisance = truth["family"].str[1:].astype(int).to_numpy(), truth["background"].to_numpy()
    for start in range(0, n, 10_000):
        at = slice(start, start + 10_000)
        noise = rng.normal(size=(len(family[at]), WIDTH)).astype(np.float32)
        label = truth["label"].to_numpy()[at, None]
        x[at] = centres[family[at]] + label * causes[family[at]] + 0.5 * nuisances[nuisance[at]] + noise
    x.flush()


def make_truth(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    family, label = rng.integers(0, FAMILIES, n), rng.integers(0, 2, n)
    name = np.char.add("f", family.astype(str))
    cause = np.where(label == 1, np.char.add(name, "_error"), "")
    return pd.DataFrame({"family": name, "cause": cause, "label": label, "background": rng.integers(0, 4, n)})


def one_pass(made: Made) -> dict[str, float]:
    """Seconds of every streaming measure: all of them watch the same pass over all rows."""
    x, rows, family = made.x, made.rows, pd.factorize(made.truth["family"])[0]
    mean, n_latents = target_mean(x, rows), made.coder.n_latents
    total, counts, mono = Reconstruction(mean), CodeCounts(n_latents), MonoScore(n_latents, WIDTH)
    purity = Purity(family, rows, n_latents)
    sizes = len(kept_sizes(n_latents))
    levels, kept = Curve(len(made.coder.config.levels), mean), Curve(sizes, mean)
    texts = torch.nn.functional.normalize(torch.randn(1000, WIDTH, generator=torch.Generator().manual_seed(0)), dim=1)
    drop = ZeroShotDrop(ZeroShot(texts, [str(i) for i in range(1000)], rows % 1000, "made up"))
    start = time.process_time()
    probe = ProbeShift(fit_probe(x, rows[: len(rows) // 5], family))
    seconds = {"probe: fit on a fifth of the rows": time.process_time() - start}
    logit = LogitChange(made.classifier)
    watch = {
        "fvu, explained variance, mse, nmae, cosine": lambda r, x, z, y: total.update(x, y),
        "l0, density, dead, silent": lambda r, x, z, y: counts.update(z),
        "MonoScore": lambda r, x, z, y: mono.update(x, z),
        "purity, weighted purity and their null": lambda r, x, z, y: purity.update(r, z),
        "levels (5)": lambda r, x, z, y: levels.update(x, at_levels(made.coder, x, z, y)),
        f"progressive recovery ({sizes} sizes)": lambda r, x, z, y: kept.update(x, largest(made.coder, x, z, y)),
        "probe_kl, probe_agreement": lambda r, x, z, y: probe.update(r, x, y),
        "logit_change, logit_fvu": lambda r, x, z, y: logit.update(r, x, y),
        "zero_shot_drop (1,000 texts)": lambda r, x, z, y: drop.update(r, x, y),
    }
    seconds |= {"encode and decode": 0.0} | dict.fromkeys(watch, 0.0)
    mark = time.process_time()
    with torch.no_grad():
        for some, xb, z in iter_codes(made.coder, x, rows):
            y = made.coder.decode(z)
            seconds["encode and decode"] += time.process_time() - mark
            for name, update in watch.items():
                mark = time.process_time()
                update(some, xb, z, y)
                seconds[name] += time.process_time() - mark
            mark = time.process_time()
    mono.scores(), purity.result(), total.result(), counts.result(), drop.result()
    return seconds


def all_at_once(made: Made) -> dict[str, float]:
    """`scan`, as notebook 04 calls it: everything above, dead latents on train, CKNNA, coherence, top images."""
    family = pd.factorize(made.truth["family"])[0]
    return _timed("scan: all of them", lambda: scan(made.coder, made.x, made.x, made.rows, {"train": made.rows}, classes=family, readout=made.classifier))  # fmt: skip


def decoders(made: Made) -> dict[str, float]:
    other = coder(made.coder.n_latents, seed=1).W_dec.detach().numpy()
    own = made.coder.W_dec.detach().numpy()
    seconds = _timed("CKNNA, 5 samples of 2,000 rows", lambda: neighbours_kept(made.coder, made.x, made.rows))
    seconds |= _timed("decoder_coherence", lambda: decoder_coherence(own))
    return seconds | _timed("stability of two seeds (Hungarian)", lambda: stability(own, other))


def joined(made: Made) -> Data:
    """The rows as stages see them: classes are the families, 60 / 20 / 20 in train, val and test."""
    n = len(made.x)
    split = np.repeat(["train", "val", "test"], [int(0.6 * n), int(0.2 * n), n - int(0.6 * n) - int(0.2 * n)])
    shared = dict(status="ok", duplicate_of="", generator="", label=pd.array([pd.NA] * n, "Int64"), row=made.rows)
    manifest = pd.DataFrame({"class_name": made.truth["family"], "split": split, **shared})
    return Data(made.x, manifest, np.zeros((0, WIDTH), np.float32), pd.DataFrame({"phrase": []}), {"labels": "classes"})


def card(made: Made) -> dict[str, float]:
    data = joined(made)
    everything = Data(data.x, data.manifest.assign(split="test"), data.vocabulary, data.phrases, data.facts)
    return _timed("definition card", lambda: definitions(everything, [Subject("ours", 0, "", "x", made.coder)]))


def training(made: Made) -> dict[str, float]:
    """03: one coder, validated twice."""
    data, config = joined(made), SparseCoderConfig(d_in=WIDTH, d_out=WIDTH, n_latents=made.coder.n_latents, ks=(32,))
    how = TrainConfig(steps=20, batch=1024, val_every=10)
    with tempfile.TemporaryDirectory() as folder:
        return _timed("03", lambda: fit(config, data.x, None, data.rows("train"), data.rows("val"), how, folder))


def measuring(made: Made) -> dict[str, float]:
    """04: everything of one coder on all splits, with a probe, purity and the definition card."""
    data, subjects = joined(made), [Subject("ours", 0, "", "x", made.coder)]
    return _timed("04", lambda: (scan_all(data, subjects, None), definitions(data, subjects)))


def features(made: Made) -> dict[str, float]:
    labels, fifth = made.truth["label"].to_numpy(), made.rows[::5]
    seconds = _timed("top images, densities, error counts, all rows", lambda: activity(made.coder, made.x, made.rows, labels=labels))  # fmt: skip
    seconds |= _timed("causal relevance with controls, a fifth of the rows", lambda: causal_relevance(made.coder, made.classifier, made.x, fifth, "x"))  # fmt: skip
    active = sparse_codes(made.coder, made.x, fifth).toarray() > 0
    family = made.truth["family"].to_numpy(str)[fifth]
    return seconds | _timed("permutation null of enriched, 200 runs, a fifth", lambda: permutation_null(active, labels[fifth], family))  # fmt: skip


def against_truth(made: Made) -> dict[str, float]:
    """The measures against the truth, split 60 / 20 / 20."""
    n = len(made.x)
    rows = dict(zip(("train", "val", "test"), np.split(made.rows, [int(0.6 * n), int(0.8 * n)]), strict=True))
    tasks, cause, seconds, codes = causes.tasks(made.truth, rows), made.truth["cause"].to_numpy(str), {}, {}
    seconds |= _timed("codes of train, val and test", lambda: codes.update({s: sparse_codes(made.coder, made.x, r) for s, r in rows.items()}))  # fmt: skip
    found, truly = [], []
    seconds |= _timed(f"causes found ({len(tasks)} causes)", lambda: found.append(causes.causes_found(tasks, codes["val"], codes["test"])))  # fmt: skip
    seconds |= _timed("k-sparse probing, one cause", lambda: causes.sparse_probe(tasks[0], codes))
    seconds |= _timed("linear ceiling, one cause", lambda: causes.ceilings(tasks[:1], {s: made.x[r] for s, r in rows.items()}))  # fmt: skip
    labels = cause[rows["val"]], cause[rows["test"]]
    seconds |= _timed("truly error features", lambda: truly.append(attributes.error_features(codes["val"], codes["test"], *labels)))  # fmt: skip
    seconds |= _timed(
        "kinds of features", lambda: attributes.feature_kinds(codes["test"], made.truth.iloc[rows["test"]])
    )
    best = dict(zip(found[0]["cause"], found[0]["fires_for"], strict=True))
    return seconds | _timed("splitting and absorption", lambda: attributes.splitting(truly[0], codes["test"], labels[1], best))  # fmt: skip


STAGES = {"03_train": training, "04_evaluate": measuring}
GROUPS = {f.__name__: f for f in (one_pass, all_at_once, decoders, card, features, against_truth)}


def _timed(name: str, work) -> dict[str, float]:
    start = time.process_time()
    work()
    return {name: time.process_time() - start}


def _made(path: Path, n_latents: int) -> Made:
    x = np.load(path, mmap_mode="r")
    torch.manual_seed(0)
    return Made(x, make_truth(len(x)), coder(n_latents), Classifier(WIDTH, HIDDEN).eval())


def _in_process(path: Path, n_latents: int, name: str, out) -> None:
    """One group in this process: its seconds and the process's peak memory in GB."""
    seconds = GROUPS[name](_made(path, n_latents))
    out.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def _held(path: Path, n_latents: int, name: str, out) -> None:
    """One stage in this process: by how much its memory without pages of files grows at most, in MB."""
    made, done, seen = _made(path, n_latents), threading.Event(), []

    def watch() -> None:
        while not done.wait(0.02) or not seen:
            seen.append(int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) / 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds = STAGES[name](made)[name[:2]]
    done.set()
    watcher.join()
    out.put((max(seen) - seen[0], seconds))


def memory(sizes: list[int], n_latents: int) -> int:
    """Write scale_memory.md. Returns 0 when no stage's memory grows by more than 500 bytes a row at the last two sizes."""
    spawn, lines = multiprocessing.get_context("spawn"), []
    for n in sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as folder:
            write_rows(Path(folder) / "x.npy", n)
            for name in STAGES:
                out = spawn.SimpleQueue()
                process = spawn.Process(target=_held, args=(Path(folder) / "x.npy", n_latents, name, out))
                process.start()
                process.join()
                if process.exitcode:
                    return 1
                held, seconds = out.get()
                lines.append(
                    {"stage": name, "rows": n, "file": n * WIDTH * 4 / 2**20, "held": held, "seconds": seconds}
                )
                print(lines[-1], flush=True)
    table = pd.DataFrame(lines).sort_values(["stage", "rows"], ignore_index=True)
    more = table.groupby("stage")[["held", "rows"]].agg(lambda column: column.diff().iloc[-1])
    slope = more["held"] * 2**20 / more["rows"]
    columns = {"stage": "stage", "rows": "rows", "file": "mapped file, MB", "held": "beyond it at the peak, MB"}
    head = f"# What one coder of {n_latents:,} latents needs beyond the mapped rows of {WIDTH}\n\n"
    head += ", ".join(f"{name}: {value:.0f} bytes more a row" for name, value in slope.items())
    head += " between the last two sizes; before, blocks of rows are not yet full.\n\n"
    columns["seconds"] = "CPU seconds"
    text = head + markdown_table(table, columns, max_rows=99) + "\n"
    print(text)
    write_text(ROOT / "proofs" / "results" / "scale_memory.md", text)
    return 0 if slope.max() <= 500 else 1


def main() -> int:
    """Returns 0 when every measure stays within 10 minutes and 4 GB, else 1."""
    parser = argparse.ArgumentParser(prog="prove scale", description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--latents", type=int, default=8192)
    parser.add_argument("--only", default="", choices=["", *GROUPS])
    parser.add_argument("--memory", type=int, nargs="+", metavar="ROWS")
    args = parser.parse_args()
    if args.memory:
        return memory(args.memory, args.latents)
    results, spawn = ROOT / "proofs" / "results", multiprocessing.get_context("spawn")
    kept = json.loads((results / "scale.json").read_text(encoding="utf-8")) if args.only else {"lines": []}
    if args.only and (kept["rows"], kept["latents"]) != (args.rows, args.latents):
        parser.error(f"--only: scale.json is of {kept['rows']} rows and {kept['latents']} latents")
    lines = [line for line in kept["lines"] if line["group"] != args.only]
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        path = Path(folder) / "x.npy"
        write_rows(path, args.rows)
        for name in [args.only] if args.only else GROUPS:
            out = spawn.SimpleQueue()
            process = spawn.Process(target=_in_process, args=(path, args.latents, name, out))
            process.start()
            process.join()
            if process.exitcode:
                return 1
            seconds, peak = out.get()
            lines += [{"group": name, "measure": m, "seconds": s, "peak": peak} for m, s in seconds.items()]
            print(f"{name}: {sum(seconds.values()):.0f} s, {peak:.2f} GB", flush=True)
    lines.sort(key=lambda line: list(GROUPS).index(line["group"]))
    table = pd.DataFrame(lines)
    slowest, largest = table.loc[table["seconds"].idxmax()], table["peak"].max()
    head = f"# Every measure on {args.rows:,} rows of {WIDTH} with {args.latents:,} latents\n\n"
    head += f"{torch.get_num_threads()} threads of {platform.machine()}, numpy {versions()['numpy']}, torch {versions()['torch']}. "
    head += f"All together {table['seconds'].sum() / 60:.0f} minutes of CPU time; the slowest is *{slowest['measure']}*, {slowest['seconds']:.0f} s of CPU time; "
    head += f"the largest process takes {largest:.1f} GB, pages of the memory-mapped rows included. Limits: {LIMIT_SECONDS} s each, {LIMIT_GB:.0f} GB.\n\n"
    columns = {"group": "process", "measure": "measure", "seconds": "CPU seconds", "peak": "peak of the process, GB"}
    text = head + markdown_table(table, columns, max_rows=99) + "\n"
    print(text)
    write_text(results / "scale.md", text)
    write_json(results / "scale.json", {"rows": args.rows, "latents": args.latents, "lines": lines})
    return 0 if largest <= LIMIT_GB and slowest["seconds"] <= LIMIT_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
