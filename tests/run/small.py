"""A repository of a few cells: two stages, one module, one profile; its kernels are real."""

from __future__ import annotations

import shutil
from pathlib import Path

from mtlib.run.profiles import ROOT, Places

HEADER = """# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # {stage}

# %% tags=["parameters"]
run_dir = "runs/demo"
stage_dir = ""
{parameters}

"""

MAKE = """# %%
from mtlib.tiny import value
from mtlib.run.stage import Stage

stage = Stage("01_make", run_dir, stage_dir, params=dict(n=n))
{extra}

# %%
(stage.out / "figures").mkdir(exist_ok=True)
(stage.out / "figures" / "01_value.txt").write_text(str(value(n)))
print("value", value(n))
stage.finish(n=n)
"""

USE = """# %%
from mtlib.run.stage import Stage

stage = Stage("02_use", run_dir, stage_dir, params=dict(factor=factor))
n = stage.facts("01_make")["n"]
{extra}

# %%
(stage.out / "tables").mkdir(exist_ok=True)
(stage.out / "tables" / "02_product.csv").write_text(f"product\\n{{n * factor}}\\n")
stage.finish()
"""

BUILD = """import sys
from pathlib import Path

run, report = map(Path, sys.argv[1:])
tables = sorted(p.name for p in (report / "tables").glob("*.csv"))
(report / "README.md").write_text(f"# {run.name}: {', '.join(tables)}")
"""

EXTRA = """# %%
from mtlib.run.stage import Stage

stage = Stage("more_words", run_dir, stage_dir, params=dict(word=word))
text = f"{{word}}: {{stage.facts('01_make')['n']}}"

# %%
(stage.out / "tables").mkdir(exist_ok=True)
(stage.out / "tables" / "more_words_said.csv").write_text(f"said\\n{{text}}\\n")
stage.finish()
"""


def write_extra(places: Places) -> None:
    """Add the unnumbered notebook more_words, which can be a stage, and `look`, which cannot."""
    header = HEADER.format(stage="more_words", parameters='word = "n"')
    (places.root / "notebooks" / "more_words.py").write_text(header + EXTRA.format())
    (places.root / "notebooks" / "look.py").write_text(header.replace('stage_dir = ""\n', ""))


def write(
    root: Path, make: str = "", use: str = "", make_parameters: str = "n = 2  # rows", body: str = MAKE
) -> Places:
    """Write the repository; `make` and `use` are lines added to a cell of the stage."""
    for folder in ("notebooks", "params", "mtlib"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if not (root / "mtlib" / "run").exists():
        shutil.copytree(ROOT / "mtlib" / "run", root / "mtlib" / "run", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "mtlib" / "__init__.py").write_text("")
    (root / "mtlib" / "report").mkdir(exist_ok=True)
    (root / "mtlib" / "report" / "build.py").write_text(BUILD)
    (root / "mtlib" / "tiny.py").write_text("def value(n):\n    return n + 1\n")
    header = HEADER.format(stage="01_make", parameters=make_parameters)
    (root / "notebooks" / "01_make.py").write_text(header + body.format(extra=make))
    header = HEADER.format(stage="02_use", parameters="factor = 1.5")
    (root / "notebooks" / "02_use.py").write_text(header + USE.format(extra=use))
    (root / "params" / "demo.yaml").write_text("n: 3\n")
    (root / "params" / "smoke.yaml").write_text("n: 1\n")
    return Places(root, ("01_make", "02_use"))
