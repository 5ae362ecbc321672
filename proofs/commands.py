"""Every command of README.md and docs/ that runs a profile, run for real: small, offline, on stand-ins for the files that it names.

    ./run_all.sh prove commands [--only PATTERN] [--list]

Each is run in a copy of this repo, as written but for: `--smoke`; a run of its own per profile, so that stages are not repeated; sizes
in `methods` cut; a named encoder, which needs a network, left to the bundled one; a paid server replaced by one on this machine; the
width 768 in file names, which are those of the published files, by the bundled encoder's. What is named `hf-hub:` comes from a
hub on this machine. Two profiles at a time. Writes proofs/results/commands.md; with --only the lines of all others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mtlib.embed.encoders import Encoder
from mtlib.run.artifacts import versions, write_text
from mtlib.scenes.dataset import plan, render
from proofs.smoke import OFFLINE
from tests.ask.lmm_server import LmmServer
from tests.coders import checkpoints, hub_server
from tests.parity import alexnet_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
OTHERS = ("test", "keep", "prove", "bench", "viewer", "pair", "lock")  # words of run_all.sh that are no profile
COMMAND = re.compile(r"^(\./run_all\.sh.*)$|`(\./run_all\.sh[^`]*)`", re.MULTILINE)
COLUMNS = ("command", "seconds", "stages", "exit", "said")
ROW = re.compile(r"^\| `(.+)` \| (\d+) \| (\d*) \| (\d+) \| (.*) \|$", re.MULTILINE)
N, D = 400, 192  # rows of embeddings, and the width of the bundled encoder's
S = 256  # latents of what was trained elsewhere
FOLDERS = ("datasets", "FOLDER", "path/to/images")  # human_correct/ and human_error/
CLASSES = (
    "imagenet",
    "OpenImages",
    "path/to/class/folders",
    "path/to/others",
    "data/imagenette2/train",
    "cifar10",
    "cifar100",
)
SMALLER = {  # a pattern in a command -> what stands for it
    r"(?<![\w.])/path/to/": "path/to/",
    r"_\d+_768\.npy": f"_{N}_{D}.npy",
    r"6144_768_TopKReLU_64_RW_(\S+?)_768\.pth": rf"{S}_{D}_TopKReLU_4_RW_\1_{D}.pth",
    r"n_latents: \d+": f"n_latents: {S}",
    r"epochs: \d+": "epochs: 2",
    r"(-p vision_layer)=6": r"\1=2",
    r"-p (?:encoder|pretrained)=\S+": "",
    r"(-p n_latents)=\d+": rf"\1={S}",
}


def commands() -> list[str]:
    """Every command line of the pages that starts with run_all.sh, once, in their order."""
    found = [a or b for page in PAGES for a, b in COMMAND.findall(page.read_text(encoding="utf-8"))]
    return list(dict.fromkeys(re.sub(r"\s+#.*", "", command).strip() for command in found))


def profile(command: str) -> str:
    """The profile that a command runs; "" for those that run none."""
    words = shlex.split(command)[1:]
    if not words or words[0].startswith("-"):
        return "demo"
    return "" if words[0] in OTHERS else words[0]


def smaller(command: str, server: str) -> list[str]:
    """The words of a command as it is run here, after run_all.sh. Args: server: base_url of the multimodal model."""
    for pattern, stands in SMALLER.items():
        command = re.sub(pattern, stands, command)
    words, kept = shlex.split(command)[1:], []
    for word in words:
        if word.startswith(("run=", "base_url=", "model=")):
            kept.pop()  # its -p
        else:
            kept.append(word)
    kept += ["-p", f"run=commands_{profile(command)}", "--smoke"]
    if "vocabulary=clip_disect_20k.txt" in kept:  # words are embedded by the encoder that made the embeddings
        kept += ["-p", "encoder=local-dir:mtlib/scenes/clip"]
    if "judge=lmm" in kept or ("matryoshka_transcoders" in kept and "judge=keyless" not in kept):
        judge = [] if "judge=lmm" in kept else ["-p", "judge=lmm"]
        kept += [*judge, "-p", f"base_url={server}", "-p", "model=test-model", "-p", "max_features=3"]
    return kept


def make(root: Path) -> dict[str, dict[str, bytes]]:
    """Write everything that the commands name below `root`. Returns: the repositories of the hub."""
    scenes = [(Path(name), render(spec)[0]) for name, spec, _ in plan(180, 7, 0)]
    scenes += [
        (Path("human_correct/tenth", name.name), image) for name, image in scenes[:12]
    ]  # as many classes as published
    for folder, classes in [(f, False) for f in FOLDERS] + [(f, True) for f in CLASSES]:
        for name, image in scenes:
            path = root / folder / (Path(*name.parts[1:]) if classes else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    rng = np.random.default_rng(0)
    x, words = rng.normal(size=(N, D)).astype(np.float32), [f"word {i}" for i in range(50)]
    for command in commands():  # plain float32, as MSAE writes it: the shape is in the name
        for name in re.findall(r"[\w~.-]+_\d+_768\.npy", command):
            other = rng.normal(size=(N, D)).astype(np.float32)
            other.tofile(root / re.sub(r"_\d+_768\.npy", f"_{N}_{D}.npy", name))
    for name, rows in {"x": x, "train": x[:300], "test": x[300:], "words": x[:50]}.items():
        np.save(root / f"{name}.npy", rows)
    for name in ("words.txt", "clip_disect_20k.txt", "vocab/clip_disect_20k.txt"):
        write_text(root / name, "\n".join(words))
    write_text(root / "classes.txt", "\n".join("abc"[i % 3] for i in range(N)))
    write_text(root / "imagenet_classes.txt", "\n".join("abc"[i % 3] for i in range(2 * N)))
    split = {f"{part}_path": "../train.npy" if part == "train" else "../test.npy" for part in ("train", "val", "test")}
    write_text(root / "config" / "imagenet_clip.json", json.dumps(split))
    write_text(root / "imagenet_clip.json", json.dumps({k: v.removeprefix("../") for k, v in split.items()}))
    hidden = np.maximum(x[:, :32], 0)
    np.savez(root / "activations_xyz.npz", x=x, y=hidden, z=1 / (1 + np.exp(-x[:, :1])))
    activations = root / "activation_dataset_block6_resid"
    activations.mkdir()
    for i in range(60):
        torch.save(torch.from_numpy(x[i : i + 4, :64].copy()), activations / f"activation_block6_img{i:02d}_00.pt")
    return given_checkpoints(root)


def given_checkpoints(root: Path) -> dict[str, dict[str, bytes]]:
    """The published files, of stand-in weights. Returns: the repositories of the hub."""
    for folder in ("models", "checkpoints/monoloss", "checkpoints_v2"):
        (root / folder).mkdir(parents=True)
    msae = checkpoints.msae(root, D, S, "TopKReLU_4_RW").path
    checkpoints.clip_classifier(root, D, 256)
    for name in ("matryoshka_transcoder_0.pt", "models/matryoshka_transcoder_best.pt"):
        checkpoints.matryoshka_transcoders(
            root / Path(name).parent, D, 256, [32, 64, S], [2, 4, 8], name=Path(name).name
        )
    checkpoints.monoloss(root / "checkpoints/monoloss", D, S)
    layer = Encoder.load("demo", layer="-1", tokens="all").d_in
    checkpoints.sae_for_clip(root / "checkpoints_v2", layer, 8 * layer, "best")
    checkpoints.alexnet(root, alexnet_model.CONVOLUTIONS[-1][2], S)  # as wide as the last convolution
    alexnet_model.write(root / "alexnet_imagenette.pth")
    for seed, folder in enumerate(("one", "two"), 1):
        (root / folder).mkdir()
        checkpoints.msae(root / folder, D, S, "TopKReLU_4_RW", seed=seed)
    for name in ("their_checkpoint.pth", "path/to/checkpoint.pt"):
        shutil.copy(root / "checkpoints/monoloss/autoencoder_final.pt", root / name)
    return {"WolodjaZ/MSAE": {f"ViT-L_14/centered/{msae.name}": msae.read_bytes()}}


def run(command: str, root: Path, server: str, env: dict) -> dict:
    """One command, run: command, seconds, exit, stages run, and the last words of one that fails."""
    start = time.monotonic()
    words = [sys.executable, "-m", "mtlib.run.pipeline", *smaller(command, server)]
    done = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=False)
    seconds, stages = round(time.monotonic() - start), re.search(r"\((\d+) stages? run", done.stdout)
    said = "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip())[-300:].replace("\n", " ")
    line = {"command": command, "seconds": seconds, "exit": done.returncode, "said": said}
    print(f"{line['exit']:4d} {seconds:5d} s  {command}  {said}", flush=True)
    return line | {"stages": stages[1] if stages else ""}


def main() -> int:
    """Returns 0 when every command ends with 0, else 1."""
    parser = argparse.ArgumentParser(prog="prove commands", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="commands in which this pattern is found")
    parser.add_argument("--list", action="store_true", help="print what would be run")
    args = parser.parse_args()
    chosen = [c for c in commands() if profile(c) and re.search(args.only, c)]
    if args.list:
        print("\n".join(" ".join(["run_all.sh", *map(shlex.quote, smaller(c, "SERVER"))]) for c in chosen))
        return 0
    queues = pd.Series(chosen).groupby([profile(c) for c in chosen]).agg(list).tolist()
    said = {"phrase": "a hand", "description": "a hand", "confidence": 1, "has_error": False, "category": "none"}
    with tempfile.TemporaryDirectory() as folder, LmmServer(lambda _: json.dumps(said), keep=False) as server:
        root = Path(folder) / "repo"
        for name in ("mtlib", "notebooks", "params", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            root.mkdir(exist_ok=True)
            copy(ROOT / name, root / name)
        with hub_server.serve() as (address, repositories):
            repositories.update(make(root))
            env = os.environ | OFFLINE | {"HF_ENDPOINT": address, "HF_HOME": f"{folder}/hub", "PYTHONPATH": str(root)}
            env |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "HF_HUB_DISABLE_XET": "1"}
            with ThreadPoolExecutor(2) as pool:
                jobs = pool.map(lambda queue: [run(c, root, server.base_url, env) for c in queue], queues)
                lines = [line for queue in jobs for line in queue]
    failed = sum(line["exit"] != 0 for line in lines)
    page = ROOT / "proofs" / "results" / "commands.md"
    kept = ROW.findall(page.read_text(encoding="utf-8")) if page.is_file() else []
    found = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in kept} | {line["command"]: line for line in lines}
    lines = [found[c] for c in commands() if c in found]
    well, minutes = sum(int(line["exit"]) == 0 for line in lines), sum(int(line["seconds"]) for line in lines) / 60
    text = "# Every documented command, run small and offline\n\n"
    text += f"{well} of {len(lines)} end with 0, in {minutes:.0f} minutes, two at a time. "
    text += f"What stands for files, servers and sizes: proofs/commands.py. Python {versions()['python']}.\n\n"
    text += "| command | seconds | stages run | exit | what it said |\n|---|---:|---:|---:|---|\n"
    text += "".join("| `{command}` | {seconds} | {stages} | {exit} | {said} |\n".format(**line) for line in lines)
    print(text)
    write_text(page, text)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
