"""Guards of the repository itself: what may not stand in a tracked file, and lists that must agree."""

import re
import socket
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from mtlib.run import environment, params, profiles
from mtlib.run.profiles import KEPT
from mtlib.run.publish import DEMO_BYTES, REPORT_BYTES, TABLE_BYTES

ROOT = Path(__file__).resolve().parents[1]
TEXT = {".py", ".sh", ".md", ".yaml", ".yml", ".toml", ".lock", ".ipynb", ".csv", ".json", ".txt", ".html", ""}
THIS_FILE = Path("tests/test_repo.py")
MB = 1_000_000


def tracked() -> list[Path]:
    """Files that git tracks or would add, relative to the root."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("not a git checkout, so it is unknown which files are tracked")
    names = sorted({n.decode() for n in done.stdout.split(b"\0") if n})
    return [Path(n) for n in names if (ROOT / n).is_file()]


def texts() -> dict[Path, str]:
    files = [p for p in tracked() if p.suffix in TEXT and p != THIS_FILE]
    return {p: (ROOT / p).read_text(encoding="utf-8") for p in files}


def lines_with(pattern: str, suffixes=TEXT, flags=0) -> list[str]:
    found = []
    for path, text in texts().items():
        if path.suffix in suffixes and path.name != "requirements.lock":
            for match in re.finditer(pattern, text, flags):
                found.append(f"{path}:{text.count(chr(10), 0, match.start()) + 1}: {match[0][:60]}")
    return found


def test_no_machine_paths():
    assert lines_with(r"(?<![\w.:/~)}*\"'-])/(home|root|Users|work|mnt|scratch|tmp)/\w+") == []
    assert lines_with(r"[\"'`(=]/(home|root|Users|work|mnt|scratch)/\w+") == []
    assert lines_with(r"file:///") == []


def test_no_fixed_gpu_numbers():
    assert lines_with(r"cuda:[0-9]") == []
    assert lines_with(r"CUDA_VISIBLE_DEVICES[\"']?\]?\s*=\s*[\"']?[0-9]") == []


def test_no_host_names():
    assert (
        lines_with(
            r"(?<![\d.])(?!127\.0\.0\.1|0\.0\.0\.0)\d{1,3}(\.\d{1,3}){3}(?![\d.])", {".py", ".sh", ".yaml", ".md"}
        )
        == []
    )
    name = socket.gethostname()
    if len(name) > 5 and name != "localhost":
        assert lines_with(rf"\b{re.escape(name)}\b") == []


def test_no_swallowed_failures_and_no_pickle():
    assert lines_with(r"\|\| (true|:)(\s|$)", {".sh", ".yml", ".toml", ""}) == []
    unsafe = lines_with(r"^\s*(import|from) (pickle|joblib|dill)\b(?! import UnpicklingError$)", {".py"}, re.MULTILINE)
    unsafe += lines_with(r"allow_pickle\s*=\s*True|weights_only\s*=\s*False", {".py"})
    assert [line for line in unsafe if not line.startswith("tests/")] == []  # tests make bad files to be refused


def test_files_are_small_enough_for_git():
    sizes = {p: (ROOT / p).stat().st_size for p in tracked()}
    assert {p: s for p, s in sizes.items() if s > 15 * MB} == {}
    weights = {".safetensors", ".png", ".jpg", ".html", ".ipynb", ".parquet"}
    assert {p: s for p, s in sizes.items() if s > 1 * MB and p.suffix not in weights} == {}


def test_kept_reports_are_small_and_no_other_report_is_tracked():
    sizes = {p: (ROOT / p).stat().st_size for p in tracked() if p.parts[0] == "reports" and len(p.parts) > 2}
    assert {p.parts[1] for p in sizes} <= {KEPT}
    runs = {p.parts[2] for p in sizes}
    total = {run: sum(s for p, s in sizes.items() if p.parts[2] == run) for run in runs}
    assert {r: s for r, s in total.items() if s > (DEMO_BYTES if r == "demo" else REPORT_BYTES)} == {}
    assert sum(total.values()) <= 12_000_000
    assert {p for p, s in sizes.items() if p.suffix == ".html" or (p.suffix == ".csv" and s > TABLE_BYTES)} == set()
    assert {p.parts[2] for p in sizes if p.suffix == ".ipynb"} <= {"demo"}


def lock_entries() -> dict[str, list[str]]:
    """Package -> its version lines in the lock."""
    entries: dict[str, list[str]] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"^([A-Za-z0-9._-]+)==(\S+)", line):
            entries.setdefault(match[1].lower().replace("_", "-"), []).append(match[2])
    return entries


def test_lock_has_every_requirement_hashed_and_no_host():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|^-e |^\S+ @ ", text, re.MULTILINE)
    blocks = re.split(r"\n(?=[a-z0-9])", text)
    assert [b.splitlines()[0] for b in blocks if "==" in b.splitlines()[0] and "--hash=sha256:" not in b] == []
    locked = lock_entries()
    groups = environment.requirements()
    groups.pop("ray")  # not locked: a cluster's own version decides
    compared = (ROOT / "benchmarks" / "requirements.lock").read_text(encoding="utf-8")  # a lock of their own
    assert all(f"\n{r.partition('>=')[0]}==" in compared for r in groups.pop("bench"))
    assert "--hash=sha256:" in compared and not re.search(r"://|--index|--find-links|^-e ", compared, re.MULTILINE)
    for requirement in map(Requirement, (r for group in groups.values() for r in group)):
        found = locked.get(requirement.name.lower().replace("_", "-"), [])
        assert found, f"{requirement} is not in requirements.lock; run ./run_all.sh lock"
        assert all(v in requirement.specifier for v in found), f"{requirement}: the lock has {found}"


def test_environment_yml_only_points_to_pyproject():
    spec = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    plain = [d for d in spec["dependencies"] if isinstance(d, str)]
    assert [re.split(r"[<>=]", d)[0] for d in plain] == ["python", "pip"]
    (pip,) = [d["pip"] for d in spec["dependencies"] if isinstance(d, dict)]
    (extras,) = re.fullmatch(r"-e \.\[([\w,]+)\]", pip[0]).groups()
    assert len(pip) == 1
    assert set(extras.split(",")) <= set(environment.requirements())
    assert 'requires-python = ">=3.10"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert plain[0].startswith("python>=3.10")


def test_continuous_integration_runs_the_readmes_test_command():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec ./run_all.sh test")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "./run_all.sh test" in readme
    assert re.search(r"^\s*\./run_all\.sh\s*(#.*)?$", readme, re.MULTILINE), "the README shows the one command"


def test_run_all_pins_the_same_everything():
    script = (ROOT / "run_all.sh").read_text(encoding="utf-8")
    assert re.search(r"^UV=\d+\.\d+\.\d+$", script, re.MULTILINE)
    assert "--require-hashes" in script
    assert subprocess.run(["bash", "-n", "run_all.sh"], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("profile", sorted(p.stem for p in (ROOT / "params").glob("*.yaml")))
def test_profiles_fit_the_notebooks(profile):
    places = profiles.Places()
    every = [*places.stages, *profiles.unnumbered(places)]
    stages = (
        every if profile == "smoke" else profiles.stages_of(profile, {}, places)
    )  # smoke: an overlay for any profile
    notebooks = {s: params.notebook_parameters(places.root / "notebooks" / f"{s}.py") for s in stages}
    where = f"params/{profile}.yaml"
    values = params.load_profile(where, places.root)
    values.pop(profiles.NOTEBOOKS, None)
    params.check(values.pop(params.SMOKE, {}), notebooks, f"{where}: {params.SMOKE}")
    result = params.check(values, notebooks, where)
    if profile == "demo":
        for stage, defaults in notebooks.items():
            own = {k: v for k, v in defaults.items() if k not in params.RESERVED}
            assert result[stage] == own, "the notebooks' defaults are the demo's values"
