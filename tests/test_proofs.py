"""What the proofs rest on."""

from proofs import processors


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
