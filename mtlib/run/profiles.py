"""Which run a command line asks for: its name, its notebooks' parameters, and where things are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from mtlib.run import dependencies, needs, params
from mtlib.run.artifacts import ROOT, json_hash
from mtlib.run.params import ParamsError

STAGES = ("01_embed", "02_classify", "03_train", "04_evaluate", "05_features", "06_interpret", "07_results")
NOTEBOOKS = "notebooks"  # key of a profile: unnumbered notebooks that run as stages after the numbered ones
KEPT = "kept"  # below reports/; the name of no run
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
OWNER = ".profile"  # file of a report that names the profile it is of


@dataclass(frozen=True)
class Places:
    """Where things are; tests give a folder of their own."""

    root: Path = ROOT
    stages: tuple[str, ...] = STAGES  # those of every profile


def run_name(profile: str, smoke: bool, overrides: dict, places: Places) -> str:
    """The run's name: the profile, `-smoke`, and a hash of the overrides, unless `run=` names it."""
    plain = {k: v for k, v in overrides.items() if k != params.RUN}
    name = overrides.get(params.RUN)
    if name is None:
        name = f"{profile}-smoke" if smoke else profile
        return f"{name}-{json_hash(plain)[:8]}" if plain else name
    if not isinstance(name, str) or not RUN_NAME.fullmatch(name):
        shape = "up to 64 letters, digits and . _ - and starts with one of the former"
        raise ParamsError(f"-p run={name}: a run's name is {shape}")
    if name.lower() == KEPT:
        raise ParamsError(f"-p run={name}: reports/{KEPT}/ holds what is kept of runs; choose another name")
    if name == profile and not smoke and plain and set(plain) == set(asked_for(profile, places)):
        return name  # the profile's own run, with what it leaves to be given and nothing else
    if {name, name.removesuffix("-smoke")} & {p.stem for p in (places.root / "params").glob("*.yaml")}:
        raise ParamsError(f"-p run={name}: that name belongs to the profile {name}; choose another")
    report, run_dir = (places.root / kind / name for kind in ("reports", "runs"))
    for place in (report, run_dir):
        if place.exists() and not place.is_dir():
            raise ParamsError(f"-p run={name}: {place.relative_to(places.root)} is a file; choose another name")
    owner = report / OWNER
    if report.is_dir() and not (owner.is_file() and owner.read_bytes() == profile.encode()):
        raise ParamsError(f"-p run={name}: reports/{name}/ is of another profile; choose another name, or delete it")
    return name


def read(profile: str, places: Places) -> dict:
    """The params file of a profile. Raises ParamsError where there is none."""
    known = sorted(p.stem for p in (places.root / "params").glob("*.yaml") if p.stem != "smoke" and p.is_file())
    if profile not in known:
        raise ParamsError(f"{profile}: no such profile; params/ has {', '.join(known) or 'none'}")
    return params.load_profile(f"params/{profile}.yaml", places.root)


def asked_for(profile: str, places: Places) -> list[str]:
    """What a profile leaves blank (`images: ""`): the caller's own data, without which it is not what it says."""
    return [key for key, value in read(profile, places).items() if value == ""]


def not_given(asked: list[str], plain: dict) -> list[str]:
    """What was asked for and not given; of images and embeddings, where a profile leaves both blank, one is enough."""
    either = ("images", "embeddings")
    enough = set(either) <= set(asked) and any(plain.get(key) for key in either)
    return [key for key in asked if not plain.get(key) and not (enough and key in either)]


def load_params(profile: str, smoke: bool, overrides: dict, places: Places) -> dict[str, dict]:
    """Checked parameters of every notebook of the run, in order: its defaults, the profile, params/smoke.yaml and the
    profile's own `smoke: {...}` when it is a smoke run, the command line; the later of two wins. Raises: ParamsError.
    """
    listed = _parameters(stages_of(profile, {}, places), places)
    notebooks = _parameters(stages_of(profile, overrides, places), places)
    own, where = read(profile, places), f"params/{profile}.yaml"
    layers = [({k: v for k, v in own.items() if k not in (NOTEBOOKS, params.SMOKE)}, listed, where)]
    if smoke:
        every, overlay = _parameters([*places.stages, *unnumbered(places)], places), "params/smoke.yaml"
        layers.append((params.load_profile(overlay, places.root), every, overlay))
        layers.append((own.get(params.SMOKE, {}), listed, f"{where}: {params.SMOKE}"))
    plain = {k: v for k, v in overrides.items() if k not in (params.RUN, NOTEBOOKS)}
    if missing := [] if smoke else not_given(asked_for(profile, places), plain):
        raise ParamsError(f"{where}: {missing[0]} is yours to give, -p {missing[0]}=...")
    given, origin = {}, {}
    for values, known, said_in in (*layers, (plain, notebooks, "-p")):
        params.check(values, known, said_in)
        given |= values
        origin |= dict.fromkeys(values, said_in)
    ours = set().union(*notebooks.values())  # the overlay, or a list of notebooks cut by -p, may speak of others
    checked = params.check({k: v for k, v in given.items() if k in ours}, notebooks, where)
    for stage, values in checked.items():
        dependencies.check_inputs(values, places.root)
        params.check_values(places.root / "notebooks" / f"{stage}.py", values, origin)
    return checked


def _parameters(stages: list[str], places: Places) -> dict[str, dict]:
    return {s: params.notebook_parameters(places.root / "notebooks" / f"{s}.py") for s in stages}


def unnumbered(places: Places) -> list[str]:
    """Notebooks that a profile may list: those without a number whose parameters cell has a `stage_dir`."""
    files = sorted((places.root / "notebooks").glob("[!0-9]*.py"))
    return [p.stem for p in files if "\nstage_dir = " in p.read_text(encoding="utf-8")]


def stages_of(profile: str, overrides: dict, places: Places) -> list[str]:
    """The numbered stages and the notebooks that the profile, or `-p notebooks=[...]`, lists: each after the stage that it
    names at its parameters cell (`after="04_evaluate"`), others at the end, in the order of the list.
    """
    names, where = read(profile, places).get(NOTEBOOKS, []), f"params/{profile}.yaml"
    if NOTEBOOKS in overrides:
        names, where = overrides[NOTEBOOKS], "-p"
    known = unnumbered(places)
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise ParamsError(f"{where}: {NOTEBOOKS} = {names!r}: expected a list of different names of {known}")
    for name in names:
        if name not in known:
            hint = params.nearest(name, known)
            raise ParamsError(f"{where}: {NOTEBOOKS}: {name!r} is no notebook that can run as a stage; {hint}")
    after = {name: needs.attributes(places.root / "notebooks" / f"{name}.py").get("after") for name in names}
    placed = [n for stage in places.stages for n in (stage, *(name for name in names if after[name] == stage))]
    return placed + [name for name in names if name not in placed]


def forced(from_stage: str, stages: list[str]) -> set[str]:
    """Stages that `--from NN` runs again: NN and all later ones. Raises ParamsError when there is no such stage."""
    if not from_stage:
        return set()
    for i, stage in enumerate(stages):
        if from_stage in (stage, stage.split("_")[0], stage.split("_")[0].lstrip("0")):
            return set(stages[i:])
    raise ParamsError(f"--from {from_stage}: no such stage; there are {', '.join(stages)}")
