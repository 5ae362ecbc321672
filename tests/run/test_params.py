"""Params files and -p: what is accepted, and the sentence for what is not."""

import jupytext
import pytest

from mtlib.run import params
from mtlib.run.params import ParamsError
from tests.run import small

NOTEBOOKS = {
    "01_make": {"run_dir": "", "stage_dir": "", "n_scenes": 8000, "images": "", "seed": 0, "splits": [0.6, 0.4]},
    "02_use": {"run_dir": "", "stage_dir": "", "lr": 0.01, "on": False, "seed": 0, "methods": [{"name": "a", "k": 4}]},
}


def check(**values):
    return params.check(values, NOTEBOOKS, "params/demo.yaml")


def test_check_gives_each_notebook_its_own():
    result = check(seed=3, lr=1)
    assert result["01_make"] == {"n_scenes": 8000, "images": "", "seed": 3, "splits": [0.6, 0.4]}
    assert result["02_use"]["seed"] == 3
    assert result["02_use"]["lr"] == 1.0
    assert isinstance(result["02_use"]["lr"], float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_scnes": 5}, "n_scnes is no parameter of any notebook; did you mean n_scenes?"),
        ({"zzz": 5}, "zzz is no parameter of any notebook; there are images"),
        ({"n_scenes": "many"}, "n_scenes = 'many': expected a whole number like 8000"),
        ({"n_scenes": 2.5}, "n_scenes = 2.5: expected a whole number"),
        ({"n_scenes": True}, "n_scenes = True: expected a whole number"),
        ({"n_scenes": None}, "n_scenes = None: expected a whole number like 8000"),
        ({"images": 2024}, "put it in quotes"),
        ({"on": 1}, "on = 1: expected true or false"),
        ({"splits": 0.5}, "splits = 0.5: expected a list like .0.6, 0.4."),
        ({"splits": [0.5, "x"]}, r"splits\[1\] = 'x': expected a number"),
        ({"methods": ["topk"]}, r"methods\[0\] = 'topk': expected a dict"),
    ],
)
def test_check_names_key_value_and_expected_type(values, message):
    with pytest.raises(ParamsError, match=f"^params/demo.yaml: .*{message}".replace("?", r"\?")):
        check(**values)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", ".001", "1.0e-3"])
def test_small_numbers_are_floats(text):
    assert params.parse_yaml(f"lr: {text}", "x") == {"lr": 0.001}


def test_words_stay_words():
    value = params.parse_yaml("a: no\nb: 2024-01-01\nc: 1:30\nd: 010\ne: true\nf: 1_000", "x")
    assert value == {"a": "no", "b": "2024-01-01", "c": "1:30", "d": 10, "e": True, "f": 1000}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['true']", "line 1: the tag 'tag:yaml.org,2002:python/.*' is refused"),
        ("a: &x [1]\nb: *x", r"line 2: aliases \(\*name\) are not allowed"),
        ("a: &a [x]\nb: &b [*a,*a]\nc: &c [*b,*b]", "aliases"),
        ("a: 1\na: 2", "line 2: a is given twice"),
        ("a: [1", "line"),
        ("- 1", "expected lines like"),
        ("a: {b: 1}", "a is a dict"),
        ("a: [[[1]]]", "nested too deep"),
        ("a: [{b: {c: 1}}]", "b is a dict"),
        ("a: .nan", "a = nan is not a finite number"),
        ("a: [1, -.inf]", "a = -inf is not a finite number"),
        ("'x = 1; import os; x': 1", "is not a parameter name"),
        ("'import': 1", "is not a parameter name"),
        ("1: 1", "is not a parameter name"),
        ("api_key: abc", "api_key looks like a secret"),
        ("base_url: https://user:abc@host/v1", "base_url looks like a secret"),
        ("base_url: https://host/v1?api_key=abc", "base_url looks like a secret"),
        ("remark: see HTTP://host/a?x=1&Access-Token=abc there", "remark looks like a secret"),
        ("methods: [{OPENAI_API_KEY: abc}]", "looks like a secret"),
        ("stage_dir: x", "stage_dir is filled in by run_all.sh"),
        ("a: !!binary aGVsbG8=", "a is of the type bytes"),
        ("smoke: 5", r"smoke: expected values like \{n_scenes: 512\}"),
        ("smoke: {a: {b: 1}}", "x.yaml: smoke: a is a dict"),
        ("smoke: {api_key: abc}", "api_key looks like a secret"),
        ("smoke: {'import': 1}", "is not a parameter name"),
        ("[" * 5000, "x.yaml"),
    ],
)
def test_profile_refuses(tmp_path, text, message):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ParamsError, match=message):
        params.load_profile("x.yaml", tmp_path)


def test_profile_not_utf8_refused(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"a: \xff\xfe")
    with pytest.raises(ParamsError, match="not UTF-8"):
        params.load_profile("x.yaml", tmp_path)


def test_overrides_follow_the_same_rules():
    given = params.parse_overrides(["lr=1e-3", "images=a=b", "seeds=[0, 1]", "name="])
    assert given == {"lr": 0.001, "images": "a=b", "seeds": [0, 1], "name": ""}
    assert params.parse_overrides(["run=2024_01"]) == {"run": "2024_01"}
    assert params.parse_overrides(["images=hf:a/b?monkey=1"]) == {"images": "hf:a/b?monkey=1"}
    for pair, message in [("lr", "expected key=value"), ("a b=1", "not a parameter name"), ("x=*a", "aliases")]:
        with pytest.raises(ParamsError, match=message):
            params.parse_overrides([pair])
    with pytest.raises(ParamsError, match="given twice"):
        params.parse_overrides(["a=1", "a=2"])


def test_secret_value_is_refused_and_not_repeated():
    with pytest.raises(ParamsError) as e:
        params.parse_overrides(["note=sk-abcdefghijklmnop1234"])
    assert "looks like a secret" in str(e.value)
    assert "abcdefgh" not in str(e.value)
    assert params.parse_overrides(["max_tokens=500"]) == {"max_tokens": 500}


def test_notebook_parameters_read_from_source(tmp_path):
    places = small.write(tmp_path, make_parameters='n = 2\nrate = -0.5\nnames = [\n    {"a": 1},\n]')
    found = params.notebook_parameters(places.root / "notebooks" / "01_make.py")
    assert found == {"run_dir": "runs/demo", "stage_dir": "", "n": 2, "rate": -0.5, "names": [{"a": 1}]}


def test_notebook_without_tag_or_literal_refused(tmp_path):
    path = small.write(tmp_path).root / "notebooks" / "01_make.py"
    text = path.read_text()
    path.write_text(text.replace('tags=["parameters"]', ""))
    with pytest.raises(ParamsError, match=r'01_make\.py: 0 cells are tagged "parameters"'):
        params.notebook_parameters(path)
    path.write_text(text.replace("n = 2", "n = len([1])"))
    with pytest.raises(ParamsError, match="is not name = literal"):
        params.notebook_parameters(path)
    path.write_text(text.replace('stage_dir = ""\n', ""))
    with pytest.raises(ParamsError, match="has no stage_dir"):
        params.notebook_parameters(path)


def test_notebook_parameters_agree_with_jupytext(tmp_path):
    path = small.write(tmp_path).root / "notebooks" / "01_make.py"
    path.write_text(path.read_text().replace('tags=["parameters"]', 'a title tags=["hide", "parameters"]'))
    assert params.notebook_parameters(path)["n"] == 2
    (cell,) = [c for c in jupytext.read(path).cells if "parameters" in c.metadata.get("tags", [])]
    assert "n = 2" in cell.source
