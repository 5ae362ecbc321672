"""Scripts called by name, and what the proofs `repeat` and `processors` rest on."""

from mtlib.run import named
from proofs import processors, repeat


def test_available_lists_first_lines_and_hides_private(tmp_path):
    (tmp_path / "b.py").write_text('"""Does b.\n\nMore."""\n')
    (tmp_path / "_a.py").write_text("")
    assert named.available(tmp_path) == {"b": "Does b."}


def test_unknown_name_lists_and_exits_2(capsys):
    assert named.main(["proofs", "nothing"]) == 2
    err = capsys.readouterr().err
    assert "error: proofs has no nothing; there are:" in err
    assert "repeat" in err
    assert named.main(["proofs"]) == 0
    assert "repeat" in capsys.readouterr().out


def test_repeat_compares_every_published_file(tmp_path):
    for run, text in (("a", "1"), ("b", "2")):
        for name in ("tables/01_same.csv", "tables/01_other.csv", "collages/topk/3.jpg", "timings.csv"):
            path = tmp_path / run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("x" if "same" in name else text)
    (tmp_path / "a/collages/topk/3.jpg").unlink()
    verdicts = repeat.compare(tmp_path / "a", tmp_path / "b")
    assert dict(verdicts) == {
        "tables/01_same.csv": "identical",
        "tables/01_other.csv": "differs",
        "collages/topk/3.jpg": "only in one",
    }
    text = repeat.summary(verdicts, "./run_all.sh demo", [1.0, 2.0])
    assert "| tables | 2 | 1 |" in text
    assert "- tables/01_other.csv: differs" in text


def test_processors_counts_what_pytest_reports_and_sets_threads(tmp_path, monkeypatch):
    cases = '<testcase classname="a" name="fine"/><testcase classname="a" name="bad"><failure>no</failure></testcase>'
    cases += '<testcase classname="a" name="left"><skipped/></testcase>'
    counted = '<testsuite tests="3" failures="1" errors="0" skipped="1" time="1.6">'
    (tmp_path / "r.xml").write_text(f"<testsuites>{counted}{cases}</testsuite></testsuites>")
    counts, failed = processors.outcome(tmp_path / "r.xml")
    assert counts == {"passed": 1, "failed": 1, "skipped": 1, "seconds": 2} and failed == ["a::bad"]
    monkeypatch.setenv("MKL_CBWR", "AVX512")
    env = processors.environment({"threads": "3", "ATEN_CPU_CAPABILITY": "avx2"})
    assert env["OMP_NUM_THREADS"] == "3" and env["ATEN_CPU_CAPABILITY"] == "avx2"
    assert "MKL_CBWR" not in env and "threads" not in env
