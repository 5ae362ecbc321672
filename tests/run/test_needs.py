"""What a notebook needs: sections and whole notebooks are left out, and it is said why."""

import pytest

from mtlib.run import artifacts, needs, params, pipeline, profiles
from mtlib.run.notebook import prepare
from tests.run import small

SOURCE = """# %% tags=["parameters"] needs="head" after="01_make"
run_dir = "runs/demo"
stage_dir = ""
judge = "keyless"
n_flips = 0

# %% [markdown] needs="truth"
# ## Known errors

# %% needs="truth"
a = 1

# %% needs="judge=lmm"
b = 1

# %% needs="n_flips labels"
c = 1

# %% needs="!n_flips labels"
e = 1

# %%
d = 1
"""


@pytest.mark.parametrize(
    ("provided", "values", "left"),
    [
        (set(), {}, "d"),
        ({"truth"}, {}, "ad"),
        ({"truth", "labels"}, {"judge": "lmm", "n_flips": 2}, "abcd"),
        ({"labels"}, {"n_flips": 0}, "ed"),
    ],
)
def test_cells_whose_needs_are_not_met_are_left_out(tmp_path, provided, values, left):
    (tmp_path / "x.py").write_text(SOURCE)
    notebook, lines = prepare(tmp_path / "x.py", provided, {"judge": "keyless", "n_flips": 0} | values)
    assert "".join(c.source[0] for c in notebook.cells[1:] if c.cell_type == "code") == left
    assert [line["title"] for line in lines] == ([] if "truth" in provided else ["Known errors"])
    assert all(line["reason"] == needs.reason(["truth"]) for line in lines)


def test_attributes_and_answers_of_a_notebook(tmp_path):
    (tmp_path / "x.py").write_text(SOURCE)
    assert needs.attributes(tmp_path / "x.py") == {"needs": "head", "after": "01_make"}
    found = needs.answers(tmp_path / "x.py", {"truth"}, {"judge": "lmm", "n_flips": 0})
    assert found == {"head": False, "judge=lmm": True, "labels": False, "n_flips": False, "truth": True} | {
        "!n_flips": True
    }


def test_a_stage_without_what_it_needs_is_skipped_and_runs_when_it_is_there(tmp_path, capsys):
    places = small.write(tmp_path)
    use = places.root / "notebooks" / "02_use.py"
    use.write_text(use.read_text().replace('tags=["parameters"]', 'tags=["parameters"] needs="labels"'))
    first = pipeline.run("demo", places=places)
    assert (first.ran, first.left_out) == (["01_make"], {"02_use": needs.reason(["labels"])})
    assert any("left out" in line and "plausible" in line for line in capsys.readouterr().out.splitlines())
    assert set(artifacts.current(tmp_path / "runs/demo")) == {"01_make"}
    assert artifacts.read_record(tmp_path / "runs/demo/left_out.json", "") == first.left_out
    make = places.root / "notebooks" / "01_make.py"
    make.write_text(make.read_text().replace("stage.finish(n=n)", 'stage.finish(provides=["labels"], n=n)'))
    assert pipeline.run("demo", places=places).ran == ["01_make", "02_use"]
    assert set(artifacts.current(tmp_path / "runs/demo")) == {"01_make", "02_use"}


def test_further_notebooks_stand_where_they_say(tmp_path):
    places = small.write(tmp_path)
    for name, where in (
        ("one", 'after="01_make"'),
        ("two", 'after="01_make"'),
        ("end", ""),
    ):
        text = f'# %% tags=["parameters"] {where}\nrun_dir = "runs/demo"\nstage_dir = ""\n'
        (places.root / "notebooks" / f"{name}.py").write_text(text)
    order = profiles.stages_of("demo", {"notebooks": ["end", "one", "two"]}, places)
    assert order == ["01_make", "one", "two", "02_use", "end"]


class Layer(params.Settings):
    width: int = 4
    rate: float = 0.5


class Net(params.Settings):
    name: str
    layers: list[Layer] = []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "layers": [{"width": "4"}]}, r"layers\[0\].width = '4': expected a whole number"),
        ({"name": "a", "layers": [{"witdh": 4}]}, r"layers\[0\].witdh is no setting of Layer; did you mean"),
        ({"nam": "a"}, "nam is no setting of Net; did you mean name"),
        ({}, "name is missing"),
        ({"name": "a", "layers": [{"rate": float("nan")}]}, r"layers\[0\].rate = nan: should be a finite number"),
        ({"name": "a", "layers": [{"width": True}]}, r"layers\[0\].width = True: expected a whole number"),
    ],
)
def test_settings_say_path_value_and_what_was_expected(values, message):
    with pytest.raises(ValueError, match=message):
        Net(**values)


def test_settings_take_whole_numbers_for_floats_and_copy_with_changes():
    assert Layer(rate=1).rate == 1.0
    assert Layer().with_(width=8) == Layer(width=8)
    with pytest.raises(ValueError, match="width"):
        Layer().with_(width="8")
