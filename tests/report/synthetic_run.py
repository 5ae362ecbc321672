"""A small finished run, 01 to 06, written straight to disk: for tests of what reads a run (report, viewer, labels).

The coders and the classifier are real ones, trained for a moment on planted data (tests/synthetic.py). Some names in
the data are hostile on purpose: they must show as text everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from scipy import sparse

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.store import open_data
from mtlib.features.table import similar_features
from mtlib.judge import thresholds
from mtlib.judge.agreement import judge_table
from mtlib.learn.classifier import ClassifierConfig, fit_classifier
from mtlib.learn.config import TrainConfig
from mtlib.learn.train import fit
from mtlib.measure.codes import sparse_codes
from mtlib.measure.compare import comparison
from mtlib.measure.relevance import error_ratios
from mtlib.measure.scan import activity, top_images_table
from mtlib.run.artifacts import read_meta
from mtlib.run.stage import Stage
from mtlib.truth.causes import standings
from tests.synthetic import FAMILIES, write_embed_stage

HOSTILE = r"<script>window.hacked=1</script> $\unknown$ [six](http://x) | *b*"
METHODS = {"matryoshka_transcoder": "y", "sae": "x"}
COLOURS = {"hand": "#e0a078", "face": "#d6b24a", "glass": "#5fa3c9", "blocks": "#8a6fb3"}


def write_run(run_dir: Path, labels: str = "plausibility", n: int = 900, images: bool = True) -> Path:
    """Write a run of 01 .. 06 into `run_dir` and return it.

    Args:
        labels: "plausibility"; or "none": 02 is skipped, transcoders are skipped, nothing can be judged.
    """
    write_embed_stage(run_dir, n=n, images=images)
    folder = run_dir / "01_embed-interactive"
    if images:
        _draw(folder)
    _finish_embed(folder, labels)
    methods = METHODS if labels == "plausibility" else {"sae": "x"}
    _classify(run_dir, labels)
    _train(run_dir, labels, methods)
    _evaluate(run_dir, labels, methods)
    _features(run_dir, labels, methods)
    _interpret(run_dir, labels, methods)
    return run_dir


def _draw(folder: Path) -> None:
    """Replace the noise images by simple pictures: one colour per family, a red cross where the label is implausible."""
    truth = pd.read_parquet(folder / "truth.parquet")
    for line in truth.itertuples():
        rng = np.random.default_rng(line.scene)
        image = Image.new("RGB", (64, 64), tuple(int(v) for v in rng.integers(215, 250, 3)))
        draw, at = ImageDraw.Draw(image), rng.integers(8, 20)
        draw.ellipse((at, at, at + 36, at + 36), fill=COLOURS[line.family])
        if line.label == 1:
            draw.line((at + 8, at + 8, at + 28, at + 28), fill="#b3202a", width=5)
            draw.line((at + 28, at + 8, at + 8, at + 28), fill="#b3202a", width=5)
        image.save(folder / "images" / line.path)


def _finish_embed(folder: Path, labels: str) -> None:
    """Write 01's tables and close the artifact again."""
    stage = _again("01_embed", folder)
    if labels == "none":
        manifest = pd.read_parquet(folder / "embeddings/manifest.parquet")
        manifest["label"] = pd.array([pd.NA] * len(manifest), dtype="Int64")
        manifest.to_parquet(folder / "embeddings/manifest.parquet", index=False)
        (folder / "truth.parquet").unlink()
    rows = [("all", "", True, 240, 0.91, 0.97, 0.96)]
    rows += [(f, f"{f}_error", f != "glass", 60, 0.9, 0.95, 0.96) for f in FAMILIES]
    names = ["family", "cause", "captioned", "n_test", "probe_accuracy", "probe_auroc", "zero_shot_family"]
    card = {"family": "family", "cause": "cause", "probe_auroc": "probe AUROC"}
    stage.table(pd.DataFrame(rows, columns=names), "encoder", f"What the encoder sees of {HOSTILE}.", card)
    stage.table(pd.DataFrame({"status": ["ok"], "count": [900]}), "files", "Files found.")
    judged = labels != "none"
    facts = {"labels": labels, "has_truth": judged, "source": "scenes" if judged else "arrays", "n_bad": 0}
    provides = ["text", *(["labels", "truth", "generators"] if judged else [])]
    stage.finish(provides=provides, **(stage.old | facts))


def _again(name: str, folder: Path) -> Stage:
    facts = read_meta(folder)["facts"]
    stage = Stage.__new__(Stage)
    stage.name, stage.number, stage.run_dir, stage.out = name, name[:2], folder.parent, folder
    stage.root, stage.interactive, stage.params, stage.inputs, stage.old = folder.parent, True, {}, {}, facts
    stage.items = {}
    (folder / "meta.json").unlink()
    return stage


def draw(stage: Stage, name: str, frame: pd.DataFrame, caption: str = "") -> None:
    """A figure of any kind, with its table."""
    fig = Figure(figsize=(4, 2.4))
    fig.subplots().plot([0, 1], [0, 1])
    stage.figure(fig, name, frame, caption)


def _classify(run_dir: Path, labels: str) -> None:
    stage = Stage("02_classify", str(run_dir), params={"seed": 0, "d_hidden": 32})
    data = open_data(stage)
    if labels != "plausibility":
        stage.finish(status="skipped", reason="no labels: there is nothing to classify", d_hidden=0, n_outputs=0)
        return
    label = data.manifest["label"].fillna(0).to_numpy(dtype=np.int64)
    config = ClassifierConfig(d_hidden=32, epochs=4)
    model, history = fit_classifier(data.x, label, data.rows("train"), data.rows("val"), config)
    y, logits = model.predict(data.x)
    model.save(stage.out / "classifier")
    np.save(stage.out / "y.npy", y)
    np.save(stage.out / "logits.npy", logits)
    rows = data.rows("test")
    accuracy = float(((logits[rows] > 0) == label[rows]).mean())
    line = {"group": "all", "n": len(rows), "accuracy": accuracy, "accuracy_low": accuracy - 0.05, "commonest": 0.5}
    line |= {"accuracy_high": accuracy + 0.03, "auroc": 0.98, "auroc_low": 0.97, "auroc_high": 0.99, "ece": 0.02}
    stage.table(pd.DataFrame([line]), "metrics", "How well the classifier does.", {"group": "images", "auroc": "AUROC"})
    draw(stage, "roc", history, "Missed errors against false alarms.")
    stage.say("best", "The classifier's best threshold is 0.")
    stage.finish(provides=["head", "judged"], status="ok", reason="", d_hidden=32, n_outputs=1)


def _train(run_dir: Path, labels: str, methods: dict) -> None:
    stage = Stage("03_train", str(run_dir), params={"seeds": [0], "steps": 30})
    data = open_data(stage)
    rows = []
    for method, target in METHODS.items():
        line = {"method": method, "seed": 0, "preset": method, "target": target, "status": "ok", "reason": ""}
        if method not in methods:
            reason = "needs the classifier's hidden layer y, and 02 was skipped (no labels)"
            rows.append(line | {"status": "skipped", "reason": reason, "folder": ""})
            continue
        t = data.y if target == "y" else data.x
        config = SparseCoderConfig.preset(method, data.x.shape[1], t.shape[1], n_latents=64, l0=24)
        folder = f"coders/{method}-s0"
        train = TrainConfig(steps=30, batch=128, lr=3e-3)
        fit(config, data.x, t, data.rows("train"), data.rows("val"), train, stage.out / folder)
        rows.append(line | {"folder": folder, "n_latents": 64, "l0_val": 8.0, "fvu_val": 0.2, "best_step": 30})
    pd.DataFrame(rows).to_csv(stage.out / "coders.csv", index=False)
    stage.finish(provides=["coders"], n_coders=len(methods))


def _evaluate(run_dir: Path, labels: str, methods: dict) -> None:
    stage = Stage("04_evaluate", str(run_dir))
    stage.input("03_train")
    rows = []
    for method, target in METHODS.items():
        line = {"method": method, "seed": 0, "target": target, "status": "ok", "reason": ""}
        scores = {"n_latents": 64, "l0": 7.9, "fvu": 0.21, "cosine": 0.9, "dead_fraction": 0.1, "mono_score": 0.4}
        scores |= {"n_parameters": 999, "n_assessed": 32, "l0_target": 8, "matched": "matched"}
        skipped = {"status": "skipped", "reason": "needs the classifier's hidden layer y, and 02 was skipped"}
        rows.append(line | (scores if method in methods else skipped))
    stage.table(pd.DataFrame(rows), "metrics", "Every seed.")
    headings = {"method": "method", "target": "target", "l0_target": "L0 aimed at", "fvu": "FVU", "cosine": "cosine"}
    compared = comparison(pd.DataFrame(rows), ["fvu", "cosine", "dead_fraction"])
    stage.table(compared, "comparison", "Means over seeds.", headings)
    stage.finish()
    if labels == "plausibility":
        stage = Stage("truth", str(run_dir), prefix="04")
        causes = [
            dict(cause=f"{f}_error", captioned=f != "glass", method=m, seed=0, feature=i, sign=1, auroc=0.8 + 0.03 * i,
                 auroc_all=0.7, f1=0.75, ceiling_x=0.99, ceiling_y=0.98, ceiling=0.99, best_x_dim=0.75, best_y_dim=0.8,
                 ap=0.8 + 0.03 * i, ap_feature=i, ap_probe=0.95, ap_x_dim=0.4, ap_y_unit=0.3, ap_random=0.5, ap_logit=0.1,
                 base_rate=0.05, found=i > 1, copies=1, l0_target=8, n_cause=30, n_plausible=30)
            for m in methods for i, f in enumerate(FAMILIES)
        ]  # fmt: skip
        draw(stage, "causes", pd.DataFrame(causes), "Best single feature per cause.")
        stage.table(standings(pd.DataFrame(causes)), "cause_methods", "One feature for one error.")
        stage.finish()


def _features(run_dir: Path, labels: str, methods: dict) -> None:
    stage = Stage("05_features", str(run_dir))
    data, coders = open_data(stage), stage.input("03_train")
    judged = labels == "plausibility"
    for method in methods:
        coder = SparseCoder.from_pretrained(coders / f"coders/{method}-s0")
        rows = {"val": data.rows("val"), "test": data.rows("test")}
        found = {split: activity(coder, data.x, r, labels=data.labels()) for split, r in rows.items()}
        test, top = found["test"].frame(), top_images_table(found, data.manifest)
        n_error = test["n_error"] if judged else np.zeros(64, int)
        positives = int((data.labels(rows["test"]) == 1).sum()) if judged else 1
        frame = error_ratios(n_error, test["n_active"], max(positives, 1), len(rows["test"]))
        if not judged:
            frame[["error_ratio", "error_low", "error_high", "base_rate", "p_fisher", "q_bh", "q_by"]] = np.nan
        frame["n_active_val"] = found["val"].n_active.numpy()
        frame = frame.assign(**{name: test[name] for name in ("density", "mean_activation", "max_activation")})
        frame["copy_of"] = frame["feature"]
        frame["mono_score"], frame["purity"], frame["dominant_class"] = 0.5, 0.6, "hand"
        frame["causal_relevance"] = np.linspace(-1, 1, 64) if judged else np.nan
        folder = stage.out / "features" / method
        (folder / "collages").mkdir(parents=True)
        if judged:
            val = top[top["split"] == "val"].merge(data.truth[["path", "cause"]], on="path")
            share = val.groupby("feature")["cause"].apply(lambda c: c[c != ""].value_counts(normalize=False).head(1))
            best = share.reset_index().drop_duplicates("feature").rename(columns={"level_1": "top_cause"})
            frame = frame.merge(best[["feature", "top_cause"]], on="feature", how="left")
            frame["top_cause"] = frame["top_cause"].fillna("")
            frame["top_cause_share"] = (frame["error_ratio"] > 0.8).astype(float)
        frame.to_parquet(folder / "features.parquet", index=False)
        top.to_parquet(folder / "top_images.parquet", index=False)
        histogram = found["test"].histogram
        np.savez_compressed(folder / "histograms.npz", edges=histogram.edges(), counts=histogram.counts.numpy())
        similar = similar_features(
            coder.W_dec.detach().numpy(), coder.W_enc.detach().numpy(), np.ones(len(coder.W_dec)), n=6
        )
        similar.to_parquet(folder / "similar.parquet", index=False)
        sparse.save_npz(folder / "codes.npz", sparse_codes(coder, data.x, rows["test"]))
        for feature in frame.nlargest(6, "error_ratio" if judged else "density")["feature"]:
            Image.new("RGB", (300, 200), "#ddd").save(folder / f"collages/{feature}.jpg")
    stage.finish(status="ok")


def _interpret(run_dir: Path, labels: str, methods: dict) -> None:
    stage = Stage("06_interpret", str(run_dir))
    features, tables = stage.input("05_features"), []
    for method in methods:
        frame = pd.read_parquet(features / "features" / method / "features.parquet")
        error = (frame["error_ratio"] > 0.8).to_numpy()
        names = [f"a hand with {i} fingers" if e else f"a plain picture {i}" for i, e in enumerate(error)]
        rated = frame[frame["assessed"]]
        names[int(rated["error_ratio"].fillna(rated["density"]).idxmax())] = HOSTILE
        verdict = np.where(frame["assessed"], np.where(error, "error", "no_error"), "skipped")
        base = pd.DataFrame({"feature": frame["feature"], "judge": "keyless", "phrase": names, "verdict": verdict})
        base["category"], base["confidence"], base["detail"] = np.where(error, "extra fingers [six]", ""), 0.8, ""
        if labels == "none":
            base["verdict"], base["detail"] = "skipped", "no plausibility labels"
        verdicts = [base, base.assign(judge="truth", phrase="hand_error")] if labels == "plausibility" else [base]
        folder = stage.out / "explanations" / method
        folder.mkdir(parents=True)
        both = pd.concat(verdicts, ignore_index=True)
        both.to_parquet(folder / "verdicts.parquet", index=False)
        chosen = frame[["feature"]].assign(threshold=0.5, precision=0.9) if labels == "plausibility" else frame.head(0)
        chosen.reindex(columns=thresholds.COLUMNS).to_parquet(folder / thresholds.FILE, index=False)
        lines = [
            {"feature_num": int(f), "explanation": p, "num_samples": 20}
            for f, p in zip(base["feature"], names, strict=True)
        ]
        (folder / "feature_analysis.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if labels == "plausibility":
            truth = pd.DataFrame({"feature": frame["feature"], "is_error": error, "top_cause": "hand_error"})
            tables.append(judge_table(method, both, truth, {"hand_error": True}))
    if tables:
        stage.table(pd.concat(tables), "judges", "Judges against the truth.")
    stage.finish(judge="keyless")
