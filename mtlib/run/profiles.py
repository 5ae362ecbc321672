"""Which run a command line asks for: its name, its notebooks' parameters, and where things are."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

from mtlib.run import dependencies, needs, params

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("01_embed", "02_classify", "03_train", "04_evaluate", "05_features", "06_interpret", "07_results")
NOTEBOOKS = "notebooks"  # key of a profile: unnumbered notebooks that run as stages after the numbered ones
KEPT = "kept"  # below reports/; the name of no run
RUN_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")


@dataclass(frozen=True)
class Places:
    """Where things are; tests give a folder of their own."""

    root: Path = ROOT
    stages: tuple[str, ...] = STAGES

    @property
    def notebooks(self) -> Path:
        return self.root / "notebooks"

    @property
    def profiles(self) -> Path:
        return self.root / "params"

    @property
    def package(self) -> Path:
        return self.root / "mtlib"


def run_name(profile: str, smoke: bool, overrides: dict, places: Places) -> str:
    """The run's name: the profile, `-smoke`, and a hash of the overrides, unless `run=` names it."""
    plain = {k: v for k, v in overrides.items() if k != "run"}
    name = overrides.get("run")
    if name is not None:
        taken = [p.stem for p in places.profiles.glob("*.yaml")]
        if not isinstance(name, str) or not RUN_NAME.match(name):
            raise params.ParamsError(f"-p run={name}: a run's name has letters, digits, _ . - only")
        if name == KEPT:
            raise params.ParamsError(f"-p run={name}: reports/{KEPT}/ holds what is kept of runs; choose another name")
        if name == profile and not smoke and plain and set(plain) == set(asked_for(profile, places)):
            return name  # the profile's own run, with what it leaves to be given and nothing else
        if name in taken or name.removesuffix("-smoke") in taken:
            raise params.ParamsError(f"-p run={name}: that name belongs to the profile {name}; choose another")
        return name
    name = f"{profile}-smoke" if smoke else profile
    if plain:
        name += "-" + hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    return name


def asked_for(profile: str, places: Places) -> list[str]:
    """What a profile leaves blank (`images: ""`): the caller's own data, without which it is not what it says."""
    path = places.profiles / f"{profile}.yaml"
    values = params.load_profile(path, f"params/{profile}.yaml") if path.is_file() else {}
    return [key for key, value in values.items() if value == ""]


def not_given(asked: list[str], plain: dict) -> list[str]:
    """What was asked for and not given; of images and embeddings, where a profile leaves both blank, one is enough."""
    either = ("images", "embeddings")
    enough = set(either) <= set(asked) and any(plain.get(key) for key in either)
    return [key for key in asked if not plain.get(key) and not (enough and key in either)]


def load_params(profile: str, smoke: bool, overrides: dict, places: Places) -> dict[str, dict]:
    """Checked parameters of every notebook of the run: its defaults, the profile, params/smoke.yaml and the profile's own
    `smoke: {...}` when it is a smoke run, the command line; the later of two wins.

    Raises: ParamsError.
    """
    listed = _parameters(with_notebooks(profile, {}, places).stages, places)
    notebooks = _parameters(with_notebooks(profile, overrides, places).stages, places)
    every = _parameters((*places.stages, *unnumbered(places)), places)
    own, own_smoke, where = _values(profile, places)
    layers = [(own, listed, where)]
    if smoke:
        overlay, _, overlay_where = _values("smoke", places)
        layers += [(overlay, every, overlay_where), (own_smoke, listed, f"{where}: {params.SMOKE}")]
    given, origin = {}, {}
    for values, known, where in layers:
        params.check(values, known, where)
        given |= values
        origin |= dict.fromkeys(values, where)
    ours = set().union(*notebooks.values())  # the overlay, or a list of notebooks cut by -p, may speak of others
    given = {key: value for key, value in given.items() if key in ours}
    plain = {k: v for k, v in overrides.items() if k not in ("run", NOTEBOOKS)}
    if missing := [] if smoke else not_given(asked_for(profile, places), plain):
        raise params.ParamsError(f"params/{profile}.yaml: {missing[0]} is yours to give, -p {missing[0]}=...")
    params.check(plain, notebooks, "-p")
    checked = params.check(given | plain, notebooks, f"params/{profile}.yaml")
    origin |= dict.fromkeys(plain, "-p")
    for stage, values in checked.items():
        dependencies.check_inputs(values, places.root)
        params.check_values(places.notebooks / f"{stage}.py", values, origin)
    return checked


def _check_profile(profile: str, places: Places) -> None:
    known = sorted(p.stem for p in places.profiles.glob("*.yaml") if p.stem != "smoke")
    if profile not in known:
        raise params.ParamsError(f"{profile}: no such profile; params/ has {', '.join(known) or 'none'}")


def _values(name: str, places: Places) -> tuple[dict, dict, str]:
    """The parameters of a params file, those of its own smoke run, and what to call the file in messages."""
    where = f"params/{name}.yaml"
    values = params.load_profile(places.profiles / f"{name}.yaml", where)
    own = {k: v for k, v in values.items() if k not in (NOTEBOOKS, params.SMOKE)}
    return own, values.get(params.SMOKE, {}), where


def _parameters(stages: tuple[str, ...], places: Places) -> dict[str, dict]:
    return {s: params.notebook_parameters(places.notebooks / f"{s}.py") for s in stages}


def unnumbered(places: Places) -> list[str]:
    """Notebooks that a profile may list: those without a number whose parameters cell has a `stage_dir`."""
    files = sorted(places.notebooks.glob("[!0-9]*.py"))
    return [p.stem for p in files if re.search(r"^stage_dir = ", p.read_text(encoding="utf-8"), re.MULTILINE)]


def with_notebooks(profile: str, overrides: dict, places: Places) -> Places:
    """`places` with the notebooks that the profile, or `-p notebooks=[...]`, lists as stages after the numbered ones.

    Raises: ParamsError when the list is none, or names a notebook that is not there or cannot be a stage.
    """
    _check_profile(profile, places)
    where = f"params/{profile}.yaml"
    names = params.load_profile(places.profiles / f"{profile}.yaml", where).get(NOTEBOOKS, [])
    if NOTEBOOKS in overrides:
        names, where = overrides[NOTEBOOKS], "-p"
    known = unnumbered(places)
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise params.ParamsError(f"{where}: {NOTEBOOKS} = {names!r}: expected a list of different names of {known}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
            raise params.ParamsError(f"{where}: {NOTEBOOKS}: {name!r} is no notebook that can run as a stage; {hint}")
    return replace(places, stages=in_order(places.stages, names, places))


def in_order(stages: tuple[str, ...], names: list[str], places: Places) -> tuple[str, ...]:
    """The numbered stages, each followed by the further notebooks that say `after="04_evaluate"` at their parameters cell;
    the others at the end; in the order of the list."""
    after = {name: needs.attributes(places.notebooks / f"{name}.py").get("after") for name in names}
    placed = [n for stage in stages for n in (stage, *(name for name in names if after[name] == stage))]
    return (*placed, *(name for name in names if after[name] not in stages))


def forced(from_stage: str, stages: tuple[str, ...]) -> set[str]:
    """Stages that `--from NN` runs again: NN and all later ones. Raises ParamsError when there is no such stage."""
    if not from_stage:
        return set()
    for i, stage in enumerate(stages):
        if from_stage in (stage, stage.split("_")[0], stage.split("_")[0].lstrip("0")):
            return set(stages[i:])
    raise params.ParamsError(f"--from {from_stage}: no such stage; there are {', '.join(stages)}")
