"""A small finished run up to 03 with planted causes, whose coders are untrained: for tests of what is measured of a run."""

from pathlib import Path

import pandas as pd

from mtlib.coders.sparse_coder import SparseCoder, SparseCoderConfig
from mtlib.embed import store
from mtlib.learn.classifier import Classifier
from mtlib.measure import codes
from mtlib.run.stage import Stage
from tests import synthetic

D, HIDDEN, S = 16, 12, 48
METHODS = {"matryoshka_transcoder": "y", "transcoder": "y", "sae": "x"}


def open_finished(folder: Path) -> tuple:
    """Write it into `folder`. Returns: data, subjects, skipped, classifier."""
    synthetic.write_embed_stage(folder, 700, D, images=False)
    stage = Stage("02_classify", str(folder))
    classifier = Classifier(D, HIDDEN).eval()
    classifier.save(stage.out / "classifier")
    y, logits = classifier.predict(store.open_data(stage).x)
    store.save_array(stage.out / "y.npy", y)
    store.save_array(stage.out / "logits.npy", logits)
    stage.finish(status="ok", reason="", d_hidden=HIDDEN, n_outputs=1)
    stage = Stage("03_train", str(folder))
    stage.input("02_classify")
    lines = []
    for method, target in METHODS.items():
        for seed in (0, 1):
            config = SparseCoderConfig.preset(method, D, HIDDEN if target == "y" else D, n_latents=S)
            SparseCoder(config, seed).save_pretrained(stage.out / "coders" / f"{method}-s{seed}")
            lines.append(dict(method=method, seed=seed, preset=method, target=target, status="ok", reason=""))
            lines[-1]["folder"] = f"coders/{method}-s{seed}"
    lines.append(lines[0] | {"method": "other", "status": "skipped", "reason": "made up", "folder": ""})
    pd.DataFrame(lines).to_csv(stage.out / "coders.csv", index=False)
    stage.finish()
    stage = Stage("04_evaluate", str(folder))
    return store.open_data(stage), *codes.open_subjects(stage.input("03_train")), classifier
