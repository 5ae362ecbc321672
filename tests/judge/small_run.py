"""A finished run of 01, 02, 03, 05 and 06 in a moment: real artifacts, untrained coders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed.manifest import image_classes
from mtlib.embed.store import open_data, save_array
from mtlib.features.table import feature_table, similar_features, truth_columns, write_features
from mtlib.judge import keyless, thresholds, verdicts
from mtlib.judge.settings import JudgeConfig
from mtlib.learn.classifier import Classifier
from mtlib.measure.codes import sparse_codes
from mtlib.measure.logit import causal_relevance
from mtlib.measure.scan import activity, scan, write_scan
from mtlib.measure.similarity import copies
from mtlib.run.stage import Stage
from tests.synthetic import write_embed_stage


def write_small_run(run: Path, n: int = 400) -> Path:
    """Write the run into `run` and return it."""
    write_embed_stage(run, n=n, images=True)
    stage = Stage("02_classify", str(run))
    data = open_data(stage)
    classifier = Classifier(32, 16, seed=1)
    y, logits = classifier.predict(data.x)
    classifier.save(stage.out / "classifier")
    save_array(stage.out / "y.npy", y)
    save_array(stage.out / "logits.npy", logits)
    stage.finish(status="ok", reason="", d_hidden=16, n_outputs=1, class_names=["plausible", "implausible"])

    stage = Stage("03_train", str(run))
    stage.input("02_classify")
    coder = SparseCoder(SparseCoderConfig(d_in=32, d_out=16, n_latents=24, target="y", ks=(6,)), seed=2)
    coder.save_pretrained(stage.out / "coders" / "tc-s0")
    lines = [("tc", 0, "transcoder", "y", "ok", "", "coders/tc-s0"), ("sae", 0, "sae", "x", "skipped", "not today", "")]
    names = ["method", "seed", "preset", "target", "status", "reason", "folder"]
    pd.DataFrame(lines, columns=names).to_csv(stage.out / "coders.csv", index=False)
    stage.finish()

    stage = Stage("05_features", str(run))
    data = open_data(stage)
    classes, names = image_classes(data.manifest, data.tokens)
    test = data.rows("test")
    found = scan(coder, data.x, data.y, test, classes=classes, labels=data.labels())
    scanned = run / "scan"
    write_scan(scanned, found, activity(coder, data.x, data.rows("val")), data.manifest, names)
    causal = causal_relevance(coder, classifier, data.x, test, "y")
    latents, codes = pd.read_parquet(scanned / "latents.parquet"), sparse_codes(coder, data.x, test)
    table = feature_table(latents, data, copies(codes), causal, truth_columns(coder, data))
    similar = similar_features(*(w.detach().numpy() for w in (coder.W_dec, coder.W_enc)), np.ones(len(coder.W_dec)))
    write_features(stage.out / "features" / "tc", table, similar, codes, scanned)
    stage.finish()

    stage = Stage("06_interpret", str(run))
    folder = stage.input("05_features") / "features" / "tc"
    top = pd.read_parquet(folder / "top_images.parquet")
    chosen = thresholds.of_val(coder, top, data, JudgeConfig(label_precision=0.7))
    said = keyless.by_text(table, top, data, val=chosen)
    said.loc[0, "phrase"] = "<script>alert(1)</script>"
    said.loc[np.arange(len(said)) % 2 == 0, "verdict"] = "error"
    out = stage.out / "explanations" / "tc"
    out.mkdir(parents=True)
    pd.concat([said, verdicts.by_truth(table)]).to_parquet(out / "verdicts.parquet", index=False)
    chosen.to_parquet(out / thresholds.FILE, index=False)
    stage.finish(judge="keyless")
    return run
