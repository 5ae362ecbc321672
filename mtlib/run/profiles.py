"""Which run a command line asks for: its name, its notebooks' parameters, and where things are."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from mtlib.run import params, sources

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("01_embed", "02_classify", "03_train", "04_evaluate", "05_features", "06_interpret", "07_results")
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


def load_params(profile: str, smoke: bool, overrides: dict, places: Places) -> dict[str, dict]:
    """Checked parameters of every notebook: its defaults, the profile, the smoke overlay, the command line.

    Raises: ParamsError.
    """
    known = sorted(p.stem for p in places.profiles.glob("*.yaml") if p.stem != "smoke")
    if profile not in known:
        raise params.ParamsError(f"{profile}: no such profile; params/ has {', '.join(known) or 'none'}")
    notebooks = {s: params.notebook_parameters(places.notebooks / f"{s}.py") for s in places.stages}
    given, origin = {}, {}
    for name in [profile, "smoke"] if smoke else [profile]:
        values = params.load_profile(places.profiles / f"{name}.yaml", f"params/{name}.yaml")
        params.check(values, notebooks, f"params/{name}.yaml")
        given |= values
        origin |= dict.fromkeys(values, f"params/{name}.yaml")
    plain = {k: v for k, v in overrides.items() if k != "run"}
    if missing := [] if smoke else [key for key in asked_for(profile, places) if not plain.get(key)]:
        raise params.ParamsError(f"params/{profile}.yaml: {missing[0]} is yours to give, -p {missing[0]}=...")
    params.check(plain, notebooks, "-p")
    checked = params.check(given | plain, notebooks, f"params/{profile}.yaml")
    origin |= dict.fromkeys(plain, "-p")
    for stage, values in checked.items():
        sources.check_inputs(values, places.root)
        params.check_values(places.notebooks / f"{stage}.py", values, origin)
    return checked


def forced(from_stage: str, stages: tuple[str, ...]) -> set[str]:
    """Stages that `--from NN` runs again: NN and all later ones. Raises ParamsError when there is no such stage."""
    if not from_stage:
        return set()
    for i, stage in enumerate(stages):
        if from_stage in (stage, stage.split("_")[0], stage.split("_")[0].lstrip("0")):
            return set(stages[i:])
    raise params.ParamsError(f"--from {from_stage}: no such stage; there are {', '.join(stages)}")
