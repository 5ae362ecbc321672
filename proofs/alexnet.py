"""The AlexNet-Transformer at its published size: accuracy, its sparse autoencoder, and what a token holds.

    ./run_all.sh prove alexnet --images FOLDER [-p key=value ...]      a folder per class; about an hour on two cores for 4,000
    ./run_all.sh prove alexnet --smoke                                 small, on the demo's scenes; nothing is kept

Runs the profile alexnet on the images (the same command resumes, and finished stages are not run again), tries the vision
model with each coder inside, and writes proofs/results/alexnet.md with the curves and the map of one token. No image of
the folder is shown, neither there nor in the run's report, so that both may be published.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd

from mtlib.embed import store
from mtlib.embed.store import Data
from mtlib.embed.vision import AlexNetTransformer
from mtlib.features.token_maps import spliced
from mtlib.learn.config import VisionTraining
from mtlib.learn.vision import load_vision
from mtlib.measure.codes import Subject, first_seeds, open_subjects
from mtlib.report.reader import Reader
from mtlib.report.text import markdown_table
from mtlib.run.artifacts import atomic, write_text
from proofs import made_with

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "proofs" / "results"


def vision_rows(reader: Reader) -> list[str]:
    """What the vision model learned, as lines of Markdown."""
    metrics, loss = reader.table("vision_model_metrics"), reader.table("vision_model_loss")
    whole, best = metrics.iloc[0], loss.loc[loss["val_loss"].idxmin()]
    used = reader.params("vision_model")
    sizes = f"{used['vision_blocks']} blocks, batches of {used['vision_batch']}, {used['vision_epochs']} epochs"
    sizes += (
        ""
        if used["vision_epochs"] == VisionTraining().vision_epochs
        else f" (published: {VisionTraining().vision_epochs})"
    )
    chance = 1 / max(len(metrics) - 1, 2)
    return [
        f"**Vision model** ({sizes}, trained from random weights): test accuracy {whole['accuracy']:.1%} "
        f"[{whole['accuracy_low']:.1%}, {whole['accuracy_high']:.1%}] of {whole['n']:.0f} images (about {chance:.0%} by chance); "
        f"best epoch {best['epoch']:.0f}, validation loss {best['val_loss']:.3f} nats."
    ]


def coder_rows(reader: Reader, data: Data, subjects: list[Subject], model: AlexNetTransformer, n: int) -> pd.DataFrame:
    """A line per coder: what 04 measured on test tokens, and the vision model's accuracy with the coder inside."""
    metrics = reader.table("04_metrics").drop_duplicates("method").set_index("method")
    columns = [c for c in ("l0_target", "l0", "mse", "fvu", "dead_fraction") if c in metrics]
    lines = []
    for s in subjects:
        seen = spliced(model, s.coder, data, n).iloc[0]
        kept = ("accuracy", "accuracy_spliced", "accuracy_constant", "agreement")
        lines.append({"method": s.method} | metrics.loc[s.method, columns].to_dict() | {k: seen[k] for k in kept})
    return pd.DataFrame(lines)


def main() -> int:
    """Returns the pipeline's exit code when it fails, else 0."""
    parser = argparse.ArgumentParser(prog="prove alexnet", description=__doc__.splitlines()[0])
    parser.add_argument("--images", default="")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("-p", dest="pairs", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    if bool(args.images) == args.smoke:
        parser.error("give --images FOLDER, or --smoke")
    name = "alexnet-smoke" if args.smoke else "alexnet"
    options = ["--smoke"] if args.smoke else ["-p", f"images={args.images}"]
    named = [pair.removeprefix("run=") for pair in args.pairs if pair.startswith("run=")]
    name = named[0] if named else f"{name}-own" if args.pairs else name
    pairs = args.pairs if named else [f"run={name}", *args.pairs]
    pairs = pairs if args.images or args.pairs else []  # a smoke run is named by itself
    options += [word for pair in pairs for word in ("-p", pair)]
    done = subprocess.run([sys.executable, "-m", "mtlib.run.pipeline", "alexnet", *options], cwd=ROOT, check=False)
    if done.returncode:
        return done.returncode
    run_dir, reader = f"runs/{name}", Reader.of_run(f"runs/{name}")
    data, train = store.open_run(ROOT / run_dir), reader.folders["03_train"]
    subjects, model = first_seeds(open_subjects(train)[0]), load_vision(reader.folders["vision_model"] / "vision")
    frame = coder_rows(reader, data, subjects, model, 64 if args.smoke else 400)
    names = dict(zip(frame, ("coder", *(c.replace("_", " ") for c in frame.columns[1:])), strict=True))
    seconds = pd.read_csv(ROOT / "reports" / name / "timings.csv").set_index("stage")["seconds"]
    text = ["# AlexNet-Transformer", "", *vision_rows(reader), ""]
    text += [f"**Its tokens**: {len(data.x)} of {data.facts['d_in']}, after {data.facts['layer']}.", ""]
    text += [markdown_table(frame, names), ""]
    text += [
        "Accuracies: of the same test images as it is, with the coder's reconstruction in place of every token, and with"
    ]
    text += ["one constant token; agreement: the same decision with the coder as without.", ""]
    text += [", ".join(f"{stage} {s:.0f} s" for stage, s in seconds.items()) + "."]
    text += [made_with() + "."]
    print("\n".join(text))
    if not args.smoke:
        shown = {"alexnet_curves": "tokens_curves", "alexnet_token": "tokens_features"}
        for name, figure in shown.items():
            with atomic(RESULTS / f"{name}.png") as tmp:
                shutil.copy(reader.folders["tokens"] / "figures" / f"{figure}.png", tmp)
        pictures = [f"![{name}]({name}.png)" for name in shown]
        write_text(RESULTS / "alexnet.md", "\n\n".join(["\n".join(text), *pictures]) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
