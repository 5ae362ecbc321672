"""Notebooks stay pairs, small and narrated; that they run is checked by test_run_all."""

import ast
from pathlib import Path

import pytest

from mtlib.run import needs, params
from mtlib.run.profiles import STAGES, Places, unnumbered

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
MAX_CELL, MAX_FUNCTION = 25, 10
EVERY_STAGE = (*STAGES, *unnumbered(Places()))

every_notebook = pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)


def cells(source: Path, kind: str) -> list:
    import jupytext

    return [c for c in jupytext.read(source).cells if c.cell_type == kind]


def code(source: Path) -> list[str]:
    """Sources of the code cells that are Python, without lines of IPython's own."""
    return ["\n".join(x for x in c.source.splitlines() if not x.startswith(("%", "!"))) for c in cells(source, "code")]


def test_every_stage_has_a_notebook():
    assert [s for s in STAGES if not (FOLDER / f"{s}.py").is_file()] == []
    assert [p.name for p in FOLDER.glob("*.ipynb") if not p.with_suffix(".py").is_file()] == []


@every_notebook
def test_pair_is_equal_and_without_outputs(source):
    import jupytext
    from jupytext.compare import compare_notebooks

    notebook = jupytext.read(source.with_suffix(".ipynb"))  # made by ./run_all.sh pair
    compare_notebooks(notebook, jupytext.read(source), fmt="py:percent")
    assert [c for c in notebook.cells if c.get("outputs") or c.get("execution_count") is not None] == []


@every_notebook
def test_opens_with_a_title(source):
    import jupytext

    first = jupytext.read(source).cells[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    assert len(cells(source, "markdown")) >= 2, "a notebook is narrated"


@pytest.mark.parametrize("stage", EVERY_STAGE)
def test_parameters_are_tagged_literals_with_comments(stage):
    source = FOLDER / f"{stage}.py"
    values = params.notebook_parameters(source)
    assert values["run_dir"].startswith("runs/") and (stage not in STAGES or values["run_dir"] == "runs/demo")
    assert values["stage_dir"] == ""
    cell = next(c for c in cells(source, "code") if "parameters" in c.metadata.get("tags", []))
    tree = ast.parse(cell.source)
    lines = cell.source.splitlines()
    bare = [n.targets[0].id for n in tree.body if "#" not in "\n".join(lines[max(n.lineno - 2, 0) : n.end_lineno])]
    assert bare == [], "each parameter has a comment, on its lines or the line above"


@every_notebook
def test_cells_are_short_without_classes_and_long_functions(source):
    for text in code(source):
        assert len(text.splitlines()) <= MAX_CELL, f"a cell of {len(text.splitlines())} lines: {text[:80]}"
        for node in ast.walk(ast.parse(text)):
            assert not isinstance(node, ast.ClassDef), f"class {node.name} belongs in mtlib"
            if isinstance(node, ast.FunctionDef):
                n = node.end_lineno - node.lineno + 1
                assert n <= MAX_FUNCTION, f"{node.name} has {n} lines; it belongs in mtlib"


@every_notebook
def test_notebook_touches_no_other_notebook_and_no_shell(source):
    for cell in cells(source, "code"):
        bad = [x for x in cell.source.splitlines() if x.startswith(("!", "%run", "%%bash", "%%writefile"))]
        assert bad == []


@pytest.mark.parametrize("stage", EVERY_STAGE)
def test_last_cells_finish_the_stage_and_its_name_is_right(stage):
    text = "\n".join(code(FOLDER / f"{stage}.py"))
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    named = [n.args[0].value for n in calls if getattr(n.func, "id", "") == "Stage" and n.args]
    assert named == [stage]
    assert sum(getattr(n.func, "attr", "") == "finish" for n in calls) == 1


def test_parameters_that_share_a_name_share_a_default():
    """A profile sets a name once, for every notebook that has it; so the name must mean one thing."""
    seen = {}
    for stage in EVERY_STAGE:
        values = params.notebook_parameters(FOLDER / f"{stage}.py")
        for name, value in ((n, v) for n, v in values.items() if n != "run_dir"):
            first_stage, first = seen.setdefault(name, (stage, value))
            assert first == value, f"{name} is {first!r} in {first_stage} and {value!r} in {stage}; use two names"


@every_notebook
def test_every_need_has_words_for_its_lack(source):
    """What is left out is explained in the report: a need is one of `needs.WHY`, or a parameter of the notebook."""
    parameters = {name for _, cell in needs.parameter_cells(source) for name in needs.literals(cell)}
    named = {n for text in needs.answers(source, set(), {}) for n in text.lstrip("!").split("|")}
    assert {n.partition("=")[0] for n in named} - set(needs.WHY) - parameters == set()
