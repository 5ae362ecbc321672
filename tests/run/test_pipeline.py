"""The pipeline on a two-stage repository, with real kernels: how it ends, what it repeats, what it leaves."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from mtlib.run import artifacts, pipeline, profiles
from mtlib.run.notebook import StageFailed
from mtlib.run.params import ParamsError
from tests.run import small


def run(places, **settings):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = pipeline.run("demo", settings.pop("overrides", {}), places=places, **settings)
    return result, said.getvalue().splitlines()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A repository whose demo has been run once. Tests of this module build on one another's runs of it."""
    places = small.write(tmp_path_factory.mktemp("small") / "a {b} {} 'c' \"d\" é 猫 $e #1 [f] %41")
    result, _ = run(places)
    assert result.ran == ["01_make", "02_use"]
    return places


def test_importing_the_pipeline_is_light():
    code = "import sys, mtlib.run.pipeline as p; print([m for m in ('torch', 'nbclient', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_success_publishes_a_report(done):
    report = done.root / "reports" / "demo"
    files = {p.relative_to(report).as_posix() for p in report.rglob("*") if p.is_file()}
    notebooks = {f"notebooks/{s}{x}" for s in done.stages for x in (".ipynb", ".html")}
    assert (
        files == {".profile", "README.md", "timings.csv", "figures/01_value.txt", "tables/02_product.csv"} | notebooks
    )
    assert (report / "tables/02_product.csv").read_text() == "product\n4.5\n"
    assert (report / "README.md").read_text() == "# demo: 02_product.csv"
    rows = list(csv.DictReader((report / "timings.csv").read_text().splitlines()))
    assert [r["stage"] for r in rows] == list(done.stages)
    assert all(float(r["seconds"]) > 0 and int(r["peak_mb"]) > 20 for r in rows)


def test_published_notebooks_are_executed_and_hold_no_machine(done):
    folder = done.root / "reports" / "demo" / "notebooks"
    for path in folder.iterdir():
        text = path.read_text()
        assert str(done.root) not in text
        assert "start_time" not in text
        assert '<script src="http' not in text
    notebook = json.loads((folder / "01_make.ipynb").read_text())
    assert "value 4" in json.dumps(notebook["cells"][-1]["outputs"])
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info", "widgets"}


def test_unchanged_run_redoes_nothing_and_restores_the_report(done):
    product = done.root / "reports/demo/tables/02_product.csv"
    product.unlink()
    stale = done.root / "reports/demo/tables/02_old.csv"
    stale.write_text("x")
    start = time.monotonic()
    result, lines = run(done)
    assert (result.ran, result.unchanged) == ([], ["01_make", "02_use"])
    assert time.monotonic() - start < 20
    assert "unchanged" in lines[0]
    assert product.exists()
    assert not stale.exists()


def test_changed_module_reruns_what_uses_it(done):
    (done.root / "mtlib" / "tiny.py").write_text("def value(n):\n    return n + 10\n")
    result, _ = run(done)
    assert result.ran == ["01_make", "02_use"]
    assert (done.root / "reports/demo/figures/01_value.txt").read_text() == "13"
    (done.root / "mtlib" / "unused.py").write_text("X = 1\n")
    assert run(done)[0].ran == []


def test_same_output_of_an_earlier_stage_reruns_only_that_stage(done):
    path = done.root / "mtlib" / "tiny.py"
    path.write_text(path.read_text() + "# a comment\n")
    assert run(done)[0].ran == ["01_make"]


def test_flipped_bit_is_said_and_made_again(done):
    name = artifacts.current(done.root / "runs/demo")["02_use"]
    file = done.root / "runs/demo" / name / "tables/02_product.csv"
    file.write_text("product\n4.6\n")
    result, lines = run(done)
    assert any(line.startswith("sha256 mismatch") and "02_product.csv" in line for line in lines)
    assert result.ran == ["02_use"]
    assert file.read_text() == "product\n4.5\n"


@pytest.mark.parametrize("name", ["meta.json", "notebooks/02_use.html"])
def test_a_flipped_bit_of_the_record_or_of_a_page_is_said_and_made_again(done, name):
    before = (done.root / "reports/demo/notebooks/02_use.html").read_bytes()
    file = done.root / "runs/demo" / artifacts.current(done.root / "runs/demo")["02_use"] / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    result, lines = run(done)
    assert result.ran == ["02_use"] and any(f"{file.name}" in line and "runs again" in line for line in lines)
    assert (done.root / "reports/demo/notebooks/02_use.html").read_bytes() == before


def test_from_runs_again_and_clean_removes_old_hashes(done):
    before = dict(os.environ)
    result, _ = run(done, from_stage="02")
    assert dict(os.environ) == before, "what the kernel is given stays in its process"
    assert (result.ran, result.unchanged) == (["02_use"], ["01_make"])
    with pytest.raises(ParamsError, match="--from 09: no such stage"):
        run(done, from_stage="09")
    run_dir = done.root / "runs/demo"
    current = set(artifacts.current(run_dir).values())
    assert {p.name for p in run_dir.glob("0*")} > current
    (busy := done.root / "runs" / "a-busy-run" / "01_old-12345678").mkdir(parents=True)
    with pipeline.locked(busy.parent), contextlib.redirect_stdout(io.StringIO()) as said:
        pipeline.clean(done)
    assert busy.is_dir() and f"left as it is: a-busy-run: process {os.getpid()} is writing" in said.getvalue()
    assert {p.name for p in run_dir.glob("0*")} == current


def test_overrides_make_a_run_of_their_own(done):
    before = (done.root / "reports/demo/timings.csv").read_bytes()
    result, _ = run(done, overrides={"factor": 2})
    assert result.run.startswith("demo-")
    assert (result.report / "tables/02_product.csv").read_text() == "product\n6.0\n"
    assert (done.root / "reports/demo/timings.csv").read_bytes() == before
    name = profiles.run_name
    assert name("demo", True, {}, done) == "demo-smoke"
    assert name("demo", False, {"run": "mine", "factor": 2}, done) == "mine"
    assert name("demo", True, {"factor": 2}, done).startswith("demo-smoke-")
    (done.root / "reports" / "README.md").touch()
    assert name("demo", False, {"run": "a" * 64}, done) == "a" * 64
    for bad in (
        "demo",
        "demo-smoke",
        "../x",
        5,
        "",
        "kept",
        "Kept",
        "README.md",
        ".a",
        "-a",
        "a" * 65,
        "a\n",
        "a b",
        "é",
    ):
        with pytest.raises(ParamsError, match="-p run="):
            name("demo", False, {"run": bad}, done)


def test_a_stage_that_another_run_has_finished_is_taken_and_still_verified(tmp_path):
    places = small.write(tmp_path / "repo")
    run(places)
    twin, lines = run(places, overrides={"run": "twin", "factor": 2})
    assert (twin.ran, twin.unchanged) == (["02_use"], ["01_make"])
    assert lines[0] == "01_make        taken from runs/demo, where nothing differs"
    folders = [
        places.root / "runs" / name / artifacts.current(places.root / "runs" / name)["01_make"]
        for name in ("demo", "twin")
    ]
    assert artifacts.verify(folders[0]) == artifacts.verify(folders[1])
    shutil.rmtree(folders[0])  # the other run's files stay
    again, _ = run(places, overrides={"run": "twin", "factor": 2})
    assert again.ran == []
    value = next(p for p in folders[1].rglob("*.txt"))
    value.write_bytes(bytes([value.read_bytes()[0] ^ 1]) + value.read_bytes()[1:])
    third, lines = run(places, overrides={"run": "third"})  # what is damaged is not taken, but said and made
    assert "it is not taken" in lines[0] and third.ran[0] == "01_make"
    fourth, _ = run(places, overrides={"run": "twin", "factor": 2}, from_stage="01")
    assert fourth.ran == ["01_make", "02_use"]  # asked for again: not taken either


def test_a_name_belongs_to_the_profile_that_ran_under_it_first(tmp_path, capfd):
    places = small.write(tmp_path)
    (places.root / "params" / "other.yaml").write_text("n: 4\n")
    assert pipeline.main(["demo", "-p", "run=2024_01"], places) == 0, (
        "a name is text, also where it looks like a number"
    )
    before = (tmp_path / "reports/2024_01/timings.csv").read_bytes()
    for _ in range(2):
        assert pipeline.main(["other", "-p", "run=2024_01"], places) == 2
        assert "reports/2024_01/ is of another profile" in capfd.readouterr().err
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    assert (tmp_path / "reports/2024_01/timings.csv").read_bytes() == before
    assert profiles.run_name("demo", True, {"run": "2024_01"}, places) == "2024_01"


def test_a_profile_that_leaves_its_data_blank_needs_them_and_then_keeps_its_name(tmp_path):
    places = small.write(tmp_path, make_parameters='n = 2\nword = "a"')
    (places.root / "params" / "own.yaml").write_text('word: ""\n')
    name = profiles.run_name
    assert name("own", False, {"word": "x", "run": "own"}, places) == "own"
    for more in ({}, {"n": 4, "word": "x"}):
        with pytest.raises(ParamsError, match="belongs to the profile"):
            name("own", False, more | {"run": "own"}, places)
    with pytest.raises(ParamsError, match="belongs to the profile"):
        name("own", True, {"word": "x", "run": "own"}, places)
    with pytest.raises(ParamsError, match="word is yours to give, -p word="):
        profiles.load_params("own", False, {}, places)


def test_notebooks_of_a_profile_run_as_further_stages(done):
    small.write_extra(done)
    (done.root / "params" / "more.yaml").write_text("n: 3\nnotebooks: [more_words]\nword: rows\n")
    result = pipeline.run("more", places=done)
    assert (result.ran, result.unchanged) == (["more_words"], ["01_make", "02_use"])  # taken from the run before
    assert (result.report / "tables/more_words_said.csv").read_text() == "said\nrows: 3\n"
    assert "more_words_said.csv" in (result.report / "README.md").read_text()
    stages = [r["stage"] for r in csv.DictReader((result.report / "timings.csv").open())]
    assert stages == ["01_make", "02_use", "more_words"]
    again = pipeline.run("more", {"run": "mine", "word": "lines"}, places=done)
    assert again.ran == ["more_words"]
    again = pipeline.run("more", {"run": "mine", "word": "x"}, from_stage="more_words", places=done)
    assert (again.ran, again.unchanged) == (["more_words"], ["01_make", "02_use"])
    without = pipeline.run("more", {"run": "mine", "notebooks": []}, places=done)
    assert without.ran == []
    left = {p.name for p in without.report.rglob("*") if p.is_file()}
    assert not {n for n in left if n.startswith("more_words")}, "nothing is left of a notebook that is no longer run"
    assert "more_words" not in (without.report / "README.md").read_text()


@pytest.mark.parametrize(
    ("notebooks", "message"),
    [
        ("[more_wrds]", "more_wrds' is no notebook that can run as a stage; did you mean more_words"),
        ("[look]", "'look' is no notebook that can run as a stage; there are more_words"),
        ("[01_make]", "'01_make' is no notebook that can run"),
        ("more_words", "expected a list of different names"),
        ("[more_words, more_words]", "expected a list of different names"),
    ],
)
def test_a_list_of_notebooks_that_cannot_run_is_refused(tmp_path, notebooks, message):
    places = small.write(tmp_path)
    small.write_extra(places)
    (places.root / "params" / "more.yaml").write_text(f"notebooks: {notebooks}\n")
    with pytest.raises(ParamsError, match=f"params/more.yaml: notebooks.*{message}"):
        profiles.load_params("more", False, {}, places)


def test_a_profile_says_how_its_smoke_run_differs(tmp_path):
    places = small.write(tmp_path)
    profile = places.root / "params" / "own.yaml"
    profile.write_text("n: 7\nfactor: 2.0\nsmoke: {n: 2}\n")

    def used(smoke: bool, **given) -> tuple:
        checked = profiles.load_params("own", smoke, given, places)
        return checked["01_make"]["n"], checked["02_use"]["factor"]

    assert used(False) == (7, 2.0)
    assert used(True) == (2, 2.0), "smoke.yaml says n: 1 for every profile, own.yaml wins for its own"
    assert used(True, n=4) == (4, 2.0), "the command line wins over both"
    profile.write_text("smoke: {m: 2}\n")
    with pytest.raises(ParamsError, match=r"params/own\.yaml: smoke: m is no parameter of any notebook"):
        profiles.load_params("own", True, {}, places)


def test_parameters_of_an_unnumbered_notebook_belong_to_profiles_that_list_it(tmp_path):
    places = small.write(tmp_path)
    small.write_extra(places)
    (places.root / "params" / "smoke.yaml").write_text("n: 1\nword: small\n")
    (places.root / "params" / "more.yaml").write_text("notebooks: [more_words]\n")
    assert profiles.load_params("more", True, {}, places)["more_words"] == {"word": "small"}
    assert "more_words" not in profiles.load_params("demo", True, {}, places)
    (places.root / "params" / "demo.yaml").write_text("word: x\n")
    with pytest.raises(ParamsError, match=r"params/demo\.yaml: word is no parameter of any notebook"):
        profiles.load_params("demo", False, {}, places)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (
            "raise ValueError('k = 9 is larger than 8')",
            r"02_use failed in cell 3 .*: ValueError: k = 9 is larger than 8",
        ),
        ("import sys; sys.exit(0)", "02_use failed in cell 3 .*: SystemExit: 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "02_use failed in cell 3 .*: the kernel died"),
        ("import time; time.sleep(60)", "02_use failed in cell 3 .*: it took longer than the limit of 3 s"),
        ("Stage.finish = lambda *a, **k: None", "02_use failed: it ended without stage.finish"),
        ("(stage.out / 'figures').mkdir(exist_ok=True); (stage.out / 'figures/x.png').touch()", "must start with 02_"),
    ],
)
def test_bad_ends_are_failures_that_name_the_stage(done, cell, message):
    report = done.root / "reports/demo/tables/02_product.csv"
    before = report.read_bytes()
    small.write(done.root, use=cell)
    try:
        with pytest.raises(StageFailed, match=message) as e:
            run(done, cell_timeout=3 if "sleep" in cell else pipeline.CELL_TIMEOUT)
        assert "log: runs/demo/logs/02_use.log" in str(e.value)
    finally:
        small.write(done.root)
    assert report.read_bytes() == before


def test_reading_a_stage_that_the_source_does_not_name_fails(tmp_path):
    hidden = 'stage.input("01" + "_make")\nn = 3'
    body = small.USE.replace('n = stage.facts("01_make")["n"]', hidden)
    places = small.write(tmp_path)
    header = small.HEADER.format(stage="02_use", parameters="factor = 1.5")
    (places.root / "notebooks" / "02_use.py").write_text(header + body.format(extra=""))
    with pytest.raises(StageFailed, match="it read 01_make, which neither it nor its modules spell out"):
        run(places)


def test_interrupted_work_resumes_and_the_command_line_tells(tmp_path, capfd):
    count = "c = stage.out / 'checkpoint'; c.mkdir(exist_ok=True); (c / str(len(list(c.iterdir())))).touch()"
    flag = tmp_path / "flag"
    cell = (
        f"{count}; import os; assert os.path.exists({str(flag)!r}), 'not yet'; print('parts', len(list(c.iterdir())))"
    )
    places = small.write(tmp_path, make=cell)
    assert pipeline.main(["demo"], places) == 1
    assert "error: 01_make failed in cell 3" in capfd.readouterr().err
    flag.touch()
    assert pipeline.main(["demo"], places) == 0
    out = capfd.readouterr().out
    assert "resumes in runs/demo/01_make-" in out
    assert "Report: reports/demo/README.md (2 stages run" in out
    assert "parts 2" in (tmp_path / "runs/demo/logs/01_make.log").read_text()
    assert not list((tmp_path / "runs/demo").glob("*.part"))


def test_an_interrupted_from_goes_on_where_it_was(tmp_path):
    """Each stage says how often it began in its folder; 02 fails until the flag is there."""
    says = (
        "(stage.out / 'checkpoint').mkdir(exist_ok=True); c = stage.out / 'checkpoint' / 'n'; "
        "c.write_text((c.read_text() if c.exists() else '') + 'i'); "
        "open(stage.root / 'said', 'a').write(stage.name[:2] + c.read_text() + ' ')\n"
    )
    flag, said = tmp_path / "flag", tmp_path / "said"
    places = small.write(tmp_path, make=says, use=says + f"import os; assert os.path.exists({str(flag)!r})")

    def go(fails: bool, **settings) -> str:
        said.write_text("")
        if fails:
            with pytest.raises(StageFailed):
                run(places, **settings)
        else:
            run(places, **settings)
        return said.read_text().strip()

    assert go(True) == "01i 02i"
    assert go(True) == "02ii"
    assert go(True, from_stage="01") == "01i 02i", "a forced run keeps nothing of what was there before"
    assert go(True, from_stage="01") == "02ii", "and the same command again keeps what it did itself"
    assert go(True, from_stage="02") == "02i", "another command starts over"
    flag.touch()
    assert go(False, from_stage="02") == "02ii"
    assert go(False, from_stage="02") == "02i", "a whole run is forgotten"
    flag.unlink()
    assert go(True, from_stage="01") == "01i 02i"
    pipeline.clean(places)
    assert go(True, from_stage="01") == "01i 02i", "so is one that was cleaned away"
    (tmp_path / "runs/demo/rerun.json").write_text('{"stages"')
    assert go(True, from_stage="01") == "01i 02i"


def test_a_torn_list_of_stages_is_said_with_its_mend(tmp_path, capfd):
    places = small.write(tmp_path)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    for text in ('{"01_make": "01_', "[]"):
        (tmp_path / "runs" / "demo" / "stages.json").write_text(text)
        for argv in (["demo"], ["--clean"]):
            assert pipeline.main(argv, places) == 1
            err = capfd.readouterr().err
            assert (
                "error: " in err and "runs/demo/stages.json: " in err and "delete it and run the profile again" in err
            )


def test_bad_params_exit_2_before_anything_runs(tmp_path, capfd):
    places = small.write(tmp_path)
    for argv, message in [
        (["demo", "-p", "m=1"], "-p: m is no parameter of any notebook"),
        (["demo", "-p", "n=x"], "-p: n = 'x': expected a whole number like 2"),
        (["dmo"], "dmo: no such profile; params/ has demo"),
        (["demo", "-p", "run=../x"], "-p run=../x"),
        (["demo", "--cell-timeout", "0"], "--cell-timeout 0: a cell may take at least one second"),
    ]:
        assert pipeline.main(argv, places) == 2
        assert f"error: {message}" in capfd.readouterr().err
    (places.root / "params" / "demo.yaml").write_text("factr: 2\n")
    assert pipeline.main([], places) == 2
    assert "params/demo.yaml: factr is no parameter of any notebook; did you mean factor?" in capfd.readouterr().err
    path = places.root / "notebooks" / "02_use.py"
    path.write_text(path.read_text().replace('tags=["parameters"]', ""))
    assert pipeline.main([], places) == 2
    assert '02_use.py: 0 cells are tagged "parameters"' in capfd.readouterr().err
    for argv in (["--cell-timeout", "nan"], ["--cell-timeout", "0.5"], ["demo", "x\x1b]52;c;aGk=\x07"]):
        with pytest.raises(SystemExit, match="2"):
            pipeline.main(argv, places)
        assert "\x1b" not in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_what_a_terminal_would_act_on_is_shown(tmp_path, capfd):
    """Of a cell's error and of what it prints: on the terminal, in the log and in the pages."""
    odd = r"\x1b]52;c;aGk=\x07 \x1bPq#0\x1b\\ \x9b2J \x1b[31mred\x1b[0m \u202e"
    places = small.write(
        tmp_path, make=f"print('{odd}'); import pathlib; assert pathlib.Path('flag').exists(), '{odd}'"
    )
    assert pipeline.main(["demo"], places) == 1
    (tmp_path / "flag").touch()
    assert pipeline.main(["demo"], places) == 0
    said, log = capfd.readouterr(), (tmp_path / "runs/demo/logs/01_make.log").read_text()
    pages = "".join(p.read_text() for p in (tmp_path / "reports/demo/notebooks").glob("01_make.*"))
    shown = r"\x1b]52;c;aGk=\x07 \x1bPq#0\x1b\ \x9b2J red \u202e"
    assert f"AssertionError: {shown}" in said.err and shown in log and shown in pages
    for text in (said.err, said.out, log, pages):
        assert not set(text) & set("\x1b\x07\x9b\u202e")


def start(places, *argv):
    code = (
        "import sys, pathlib; from mtlib.run import pipeline; "
        f"sys.exit(pipeline.main({list(argv)!r}, pipeline.Places(pathlib.Path({str(places.root)!r}), {places.stages!r})))"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(path, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)
    return path


def test_second_pipeline_is_refused_and_a_stop_ends_the_kernel(tmp_path):
    cell = "import os, time; (stage.run_dir / 'kernel.pid').write_text(str(os.getpid())); time.sleep(120)"
    places = small.write(tmp_path, make=cell)
    first = start(places, "demo")
    try:
        pid_file = wait_for(tmp_path / "runs/demo/kernel.pid")
        second = start(places, "demo")
        _, err = second.communicate(timeout=240)
        assert second.returncode == 2
        assert f"demo: process {first.pid} is writing this run" in err
        time.sleep(0.5)
        kernel = int(pid_file.read_text())
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=240)
        assert first.returncode == 143
        end = time.monotonic() + 60
        while alive(kernel) and time.monotonic() < end:
            time.sleep(0.2)
        assert not alive(kernel)
    finally:
        if first.poll() is None:
            first.kill()


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stage_that_got_nothing_of_what_it_asked_for_ends_in_1_with_a_report_and_runs_again(tmp_path, capfd):
    """Its report is made, the words stand on the terminal, and the same command asks again."""
    body = small.MAKE.replace("stage.finish(n=n)", "stage.finish(n=n, nothing=nothing)")
    flag = tmp_path / "flag"
    cell = f"import os; nothing = '' if os.path.exists({str(flag)!r}) else 'HTTP 400: only the default is supported'"
    places = small.write(tmp_path, make=cell, body=body)
    assert pipeline.main(["demo"], places) == 1
    said = capfd.readouterr()
    assert "error: 01_make got nothing: HTTP 400: only the default is supported" in said.err
    assert "Report: reports/demo/README.md" in said.out
    flag.touch()
    assert pipeline.main(["demo"], places) == 0 and "got nothing" not in capfd.readouterr().err
