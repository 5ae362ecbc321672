"""`./run_all.sh` itself, in a copy of the repository: one smoke run of all notebooks in fresh kernels."""

import ast
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from mtlib.report.reader import Reader
from mtlib.run import artifacts
from mtlib.run.notebook import prepare, run_notebook
from mtlib.run.profiles import Places, stages_of

ROOT = Path(__file__).resolve().parents[1]
PROFILE = "matryoshka_transcoders"  # one of the five systems, so that a whole one runs
RUN = f"{PROFILE}-smoke"
STAGES = stages_of(PROFILE, {}, Places())
PARTS = ("mtlib", "notebooks", "params", "run_all.sh", "requirements.lock", "pyproject.toml")
TABLES = ("01_encoder", "04_metrics", "04_causes", "06_judges", "07_relevance", "07_generators")
FILE_NAME = re.compile(r"^[\w<>./-]*\w\.(npy|npz|parquet|csv|jsonl|safetensors)$")
NOT_ARTIFACTS = {"x.npy", "x.png", "sae_weights.safetensors"}
# Names that code spells out but a run need not hold: the user's own input, or what only an LMM or an interruption makes.
OPTIONAL = {"phrases.csv", "answers.jsonl", ".attempts.jsonl", "state.safetensors"}
OPTIONAL |= {"embedding.npy", "labels.npy"}  # a layer is read; the null of permuted labels
OPTIONAL |= {"images.parquet", "pixels.npy"}  # scratch, removed when the stage is done
OPTIONAL |= {"timings.csv"}  # of the run, not of a stage
OPTIONAL |= {"interpretations.parquet", "_interpretations.csv"}  # with published = true
OPTIONAL |= {"heat.npz", "familiar.safetensors"}  # features on a grid, or of errors found; 50 validation images


def copy_of_repo(target: Path) -> Path:
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else:
            shutil.copy2(source, target / name)
    return target


def run_all(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess:
    """run_all.sh with the tests' own environment as the active one."""
    env = {k: v for k, v in os.environ.items() if k != "CONDA_PREFIX"} | {"VIRTUAL_ENV": sys.prefix} | env
    command = [str(folder / "run_all.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_of_repo(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="module")
def smoke(copy) -> Path:
    """The copy after `./run_all.sh matryoshka_transcoders --smoke`."""
    done = run_all(copy, PROFILE, "--smoke")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"Report: reports/{RUN}/README.md ({len(STAGES)} stages run" in done.stdout
    return copy


def test_help_needs_no_environment():
    done = subprocess.run(
        [ROOT / "run_all.sh", "--help"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0
    for word in ("--smoke", "--from NN", "-p key=value", "test", "prove", "viewer", "OMP_NUM_THREADS"):
        assert word in done.stdout


def test_no_fitting_python_gives_a_clear_message(copy, tmp_path):
    for name in ("bash", "dirname", "cmp", "env", "python3"):
        if name == "python3":
            (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / name).chmod(0o755)
        else:
            (tmp_path / name).symlink_to(shutil.which(name))
    done = run_all(copy, "demo", PATH=str(tmp_path), VIRTUAL_ENV="")
    assert done.returncode != 0
    assert "no Python 3.10 to 3.13 found on PATH" in done.stderr
    assert not (copy / ".venv").exists()


def test_bad_parameter_exits_2_with_the_nearest_name(copy):
    done = run_all(copy, "demo", "-p", "n_scnes=5")
    assert done.returncode == 2
    assert "error: -p: n_scnes is no parameter of any notebook; did you mean n_scenes?" in done.stderr
    assert "Traceback" not in done.stderr
    for given, said in (
        (("images=mtlib", "encoder=ViT-B-33"), "encoder = 'ViT-B-33' is no open_clip model; did you mean ViT-B-32?"),
        (("images=mtlib", "encoder=ViT-B-32", "pretrained=a.pt"), "pretrained = a.pt: no such file"),
        (("images=mtlib",), "images = 'mtlib' needs an encoder: a CLIP of the web"),
    ):  # told before a kernel is started
        done = run_all(copy, "demo", *(part for pair in given for part in ("-p", pair)))
        assert (
            done.returncode == 2 and f"error: {said}" in done.stderr.replace("-p: ", "") and "runs" not in done.stdout
        )
    missing = run_all(copy, "demo", "-p", "images=no/such/folder", "-p", "encoder=demo")
    assert missing.returncode == 2
    assert "images = no/such/folder: no such file or folder" in missing.stderr


def test_prove_lists_what_there_is():
    done = run_all(ROOT, "prove", "nothing")
    assert done.returncode == 2
    assert "repeat" in done.stdout and "proofs has no nothing" in done.stderr
    assert "usage: prove kills_judge" in run_all(ROOT, "prove", "kills_judge", "--help").stdout


@pytest.mark.slow
def test_smoke_run_writes_the_whole_report(smoke):
    report = smoke / "reports" / RUN
    assert (report / "README.md").stat().st_size > 1000
    for name in TABLES:
        assert len(pd.read_csv(report / "tables" / f"{name}.csv")) > 0, name
    for stage in STAGES:
        assert (report / "notebooks" / f"{stage}.html").stat().st_size > 10_000
    assert list(pd.read_csv(report / "timings.csv")["stage"]) == list(STAGES)
    assert list(report.glob("collages/*/*.jpg"))


@pytest.mark.slow
def test_no_name_contradicts_its_verdict_and_every_error_is_enriched(smoke):
    folders = {stage: smoke / "runs" / RUN / name for stage, name in artifacts.current(smoke / "runs" / RUN).items()}
    phrases = pd.read_csv(folders["01_embed"] / "embeddings" / "vocabulary.csv").drop_duplicates("phrase")
    judged = 0
    for method in sorted((folders["06_interpret"] / "explanations").iterdir()):
        said = pd.read_parquet(method / "verdicts.parquet").query(
            "judge == 'keyless' and verdict in ['error', 'no_error']"
        )
        kind = said["phrase"].map(phrases.set_index("phrase")["kind"])
        assert kind.notna().all() and ((kind == "error") == (said["verdict"] == "error")).all(), method.name
        enriched = pd.read_parquet(method / "thresholds.parquet").set_index("feature")["enriched"]
        assert enriched[said.loc[said["verdict"] == "error", "feature"]].all(), method.name
        judged += len(said)
    assert judged > 0
    labels = pd.read_csv(smoke / "reports" / RUN / "tables" / "06_labels.csv")
    assert {"method", "precision", "recall", "plausible_without_error_label"} <= set(labels)


@pytest.mark.slow
def test_second_run_redoes_nothing_within_a_minute(smoke):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_all(smoke, PROFILE, "--smoke")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert f"(0 stages run, {len(STAGES)} unchanged" in done.stdout
    assert (
        used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime < 60
    )  # of the processor: however busy it is


@pytest.mark.slow
def test_report_holds_no_machine_paths(smoke):
    for path in (smoke / "reports").rglob("*"):
        if path.suffix in (".md", ".csv", ".ipynb", ".html", ".json"):
            text = path.read_text(encoding="utf-8")
            assert str(smoke) not in text, path.name
            assert str(Path.home()) + "/" not in text, path.name
            assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?://", text), path.name


@pytest.mark.slow
def test_a_run_never_dirties_the_checkout(smoke):
    """Of all that lies in the copy after a run, git would see only what was copied."""
    shutil.copy2(ROOT / ".gitignore", smoke)
    subprocess.run(["git", "init", "--quiet"], cwd=smoke, check=True)
    listed = ["git", "ls-files", "--others", "--exclude-standard", "-z"]
    seen = subprocess.run(listed, cwd=smoke, capture_output=True, text=True, check=True).stdout.split("\0")
    assert [name for name in seen if name and not (ROOT / name).exists()] == []


@pytest.mark.slow
def test_every_link_in_the_report_leads_somewhere(smoke):
    report = smoke / "reports" / RUN
    links = re.findall(r"\]\(([^)#]+)\)|(?:src|href)=\"([^\"#]+)\"", (report / "README.md").read_text(encoding="utf-8"))
    local = [a or b for a, b in links if "://" not in (a or b)]
    assert [name for name in local if not (report / name).exists()] == []


@pytest.mark.slow
def test_every_file_that_code_names_has_a_writer(smoke):
    run_dir = smoke / "runs" / RUN
    written = set()
    for folder in artifacts.current(run_dir).values():
        written |= {Path(name).name for name in artifacts.read_meta(run_dir / folder)["files"]}
    named = {}
    for path in [*(ROOT / "mtlib").rglob("*.py"), *(ROOT / "notebooks").glob("0*.py")]:
        if path.parts[-2] in ("run", "scenes"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and FILE_NAME.match(node.value):
                named.setdefault(Path(node.value).name, path.name)
    unwritten = {n: p for n, p in named.items() if n not in written | OPTIONAL | NOT_ARTIFACTS}
    assert unwritten == {}, "code names files that no stage writes"


@pytest.mark.slow
def test_failing_stage_exits_non_zero_and_is_named(smoke):
    notebook = smoke / "notebooks" / "07_results.py"
    kept = notebook.read_text(encoding="utf-8")
    failing = kept.replace("\n# %%\n", "\n# %%\nraise RuntimeError('made to fail')\n\n# %%\n", 1)
    notebook.write_text(failing, encoding="utf-8")
    try:
        done = run_all(smoke, PROFILE, "--smoke")
    finally:
        notebook.write_text(kept, encoding="utf-8")
    assert done.returncode == 1
    assert re.search(r"error: 07_results failed in cell \d+ .*: RuntimeError: made to fail", done.stderr)
    assert "07_results.log" in done.stderr


@pytest.mark.slow
def test_further_notebooks_follow_as_stages_of_the_same_run(smoke):
    """What the published systems list under `notebooks`: the seven stages stand, and their sections join the report."""
    shutil.copytree(smoke / "runs" / RUN, smoke / "runs" / "further")
    given = ("run=further", "notebooks=[truth, concepts, steering]")
    done = run_all(smoke, PROFILE, "--smoke", *[x for p in given for x in ("-p", p)])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"(2 stages run, {len(STAGES)} unchanged" in done.stdout
    report = smoke / "reports" / "further"
    assert list(pd.read_csv(report / "timings.csv")["stage"]) == [*STAGES, "concepts", "steering"]
    table = pd.read_csv(report / "tables" / "steering_factors.csv")
    assert {"feature", "control"} <= set(table["direction"])
    assert (table.loc[table["factor"] == 1, "class_kept"] == 1).all()
    text = "".join((report / page).read_text(encoding="utf-8") for page in ("README.md", "appendix.md"))
    assert "notebooks/concepts.html" in text and "tables/steering_" in text


@pytest.mark.slow
def test_the_tour_builds_by_hand_what_the_package_does(smoke):
    """Its own assertions compare gradients and the trained error with the package's."""
    given = {"run_dir": f"runs/{RUN}", "n_latents": 64, "k": 8, "steps": 60, "batch": 64, "n_images": 4}
    logs = smoke / "runs" / RUN / "logs"
    cells, _ = prepare(smoke / "notebooks" / "tour.py")
    run_notebook("tour", cells, logs / "tour.ipynb", logs / "tour.log", given, smoke, 600)
    assert "by hand" in (logs / "tour.ipynb").read_text(encoding="utf-8")


@pytest.mark.slow
def test_multimodal_judge_over_http_from_question_to_report(smoke):
    """06 and 07 with judge = lmm against a server that looks at the pictures; the stages before them stand."""
    from mtlib.embed.store import open_run
    from mtlib.learn.scores import wilson
    from tests.ask.lmm_server import MODEL, LmmServer
    from tests.ask.looking_server import Looker

    run = smoke / "runs" / "looked"
    shutil.copytree(smoke / "runs" / RUN, run)
    looker = Looker(open_run(run), right=0.85)
    given = ["run=looked", "judge=lmm", f"model={MODEL}", "max_features=25", "score_features=2", "flip_check=1"]
    with LmmServer(looker, keep=False) as server:
        command = [x for p in [*given, f"base_url={server.base_url}"] for x in ("-p", p)]
        done = run_all(smoke, PROFILE, "--smoke", *command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert f"(2 stages run, {len(STAGES) - 2} unchanged" in done.stdout
    tables = smoke / "reports" / "looked" / "tables"
    pairs = pd.read_csv(tables / "06_agreement.csv").query("method == 'all'").set_index(["judge", "reference"])
    line = pairs.loc[("lmm", "truth")]
    low, high = wilson(round(line["n"] * line["agreement"]), line["n"])
    assert line["n"] >= 100 and low <= 0.85 <= high
    answers = pd.read_csv(tables / "06_answers.csv")
    parts = answers[["answered", "refused", "failed", "unasked", "not_asked"]].sum(axis=1)
    assert (parts == answers["assessed"]).all() and answers["answered"].max() == 25
    relevance = pd.read_csv(tables / "07_relevance.csv")
    assert {"judge_lmm", "judge_keyless", "feature_accuracy", "intruder_accuracy"} <= set(relevance)
    assert (pd.read_csv(tables / "06_flips.csv")["n"] >= 0).all() and "lmm" in set(
        pd.read_csv(tables / "06_judges.csv")["judge"]
    )
    for method in answers["method"]:
        folder = run / artifacts.current(run)["06_interpret"] / "explanations" / method
        for name in ("answers.jsonl", "feature_analysis.jsonl", "error_analysis.jsonl", "verdicts.parquet"):
            assert (folder / name).stat().st_size > 0


def test_three_images_end_with_a_report(copy, tmp_path):
    for i in range(3):
        Image.new("RGB", (40, 40), (80 * i, 90, 30)).save(tmp_path / f"{i}.png")
    method = "methods=[{name: sae, preset: sae, l0: 8}]"
    done = run_all(copy, "demo", "--smoke", "-p", f"images={tmp_path}", "-p", "run=three", "-p", method)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "04_evaluate    left out: it needs a trained coder and two different test images" in done.stdout
    coders = Reader.of_run(copy / "runs" / "three").table("03_coders")
    assert coders["status"].tolist() == ["ok"] and coders["fvu_val"].isna().all()
    assert "two different test images" in (copy / "reports" / "three" / "appendix.md").read_text(encoding="utf-8")
