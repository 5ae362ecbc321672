"""Settings, and params files read safely and checked against the notebooks before anything runs.

A profile is a flat YAML file: parameter names of the notebooks and literal values (lists of flat dicts allowed). Every
name must stand in the `parameters` cell of at least one notebook, and each notebook is given its own names only. Values
under the key `smoke` follow the same rules.
"""

from __future__ import annotations

import difflib
import importlib
import keyword
import math
import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mtlib.run import needs

RESERVED = ("run_dir", "stage_dir")  # filled in by the pipeline
RUN = "run"  # -p run=NAME names the run, as text
SMOKE = "smoke"  # key of a profile: values that its --smoke run sets after those of params/smoke.yaml
MAX_BYTES = 1_000_000
SECRET = r"(api[_-]?key|access[_-]?key|secret|password|passwd|token|credentials?)"
SECRET_KEY = re.compile(rf"(^|_){SECRET}$", re.IGNORECASE)
SECRET_VALUE = re.compile(r"^(sk-|hf_|ghp_|xox[bp]-)[A-Za-z0-9_-]{12,}$")
QUERY = rf"\S*[?&;#]([\w-]*[_-])?({SECRET}|key|sig|signature|auth)="  # ?key=
SECRET_IN_URL = re.compile(rf"://([^/@\s]*:[^/@\s]+@|{QUERY})", re.IGNORECASE)  # user:password@host
KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "list": "a list"}
KINDS |= {"string": "text (put it in quotes)", "dict": "a dict, e.g. {name: a}"}


class ParamsError(ValueError):
    """A parameter or params file that cannot be used; the message says which, why and the mend."""


class Settings(BaseModel):
    """The base of all settings: field, type, range and default stand in one place.

    Values are never converted (a text is no number); a whole number may stand for a float.
    Raises: ValueError, one line: `k = 0: should be greater than or equal to 1`.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        hide_input_in_errors=True,
    )

    def __init__(self, **values):
        try:
            super().__init__(**values)
        except ValidationError as e:
            raise ValueError(message(e, type(self))) from None

    def with_(self, **changes) -> Settings:
        """A copy with some fields changed, validated again."""
        return type(self)(**({name: getattr(self, name) for name in type(self).model_fields} | changes))


def nearest(name, known: Iterable[str]) -> str:
    """The end of a message about a wrong name: which is meant, or which there are."""
    near = difflib.get_close_matches(str(name), known := list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"


def message(error: ValidationError, model: type[Settings]) -> str:
    """The first fault of a pydantic error in one line."""
    faults = error.errors()  # a wrong name explains a missing one
    fault = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    own = str(fault["ctx"]["error"]) if "error" in fault.get("ctx", {}) else ""
    if not path:  # a rule of several fields speaks for itself
        return own or fault["msg"]
    if own and isinstance(fault["input"], dict):  # of settings within settings
        return f"{path}.{own}"
    if fault["type"] == "extra_forbidden":
        return f"{path} is no setting of {model.__name__}; {nearest(fault['loc'][-1], model.model_fields)}"
    if fault["type"] == "missing":
        return f"{path} is missing"
    field, said = model.model_fields[fault["loc"][0]], own or fault["msg"].removeprefix("Input ")
    if fault["type"].endswith("_type"):
        kind, whole = fault["type"].removesuffix("_type"), len(fault["loc"]) == 1
        like = whole and field.default and isinstance(field.default, (int, float, str, list))
        said = f"expected {KINDS.get(kind, kind)}" + (f" like {field.default!r}" if like else "")
    # Field(repr=False): what may hold a key is never shown
    return f"{path} = {fault['input']!r}: {said}" if field.repr else f"{path}: {said}"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader without aliases, duplicate keys, dates or `yes`/`no`, and with 1e-3 as a float."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(~|null|)$", ["~", "n", ""]),
    ("bool", r"^(true|false|True|False)$", list("tfTF")),
    ("int", r"^[-+]?[0-9][0-9_]*$", list("-+0123456789")),
    ("float", r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|^[-+]?\.(inf|nan)$", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value.replace("_", "")))


def parse_yaml(text: str, where: str):
    """The value of a YAML text, called `where` in messages. Raises ParamsError on anything that is not plain data."""
    if len(text) > MAX_BYTES:
        raise ParamsError(f"{where}: {len(text)} characters; a params file has at most {MAX_BYTES}")
    try:
        return yaml.load(text, Loader=_Loader)  # _Loader is a SafeLoader
    except yaml.MarkedYAMLError as e:
        line = f" line {e.problem_mark.line + 1}" if e.problem_mark else ""
        problem = e.problem or "not valid YAML"
        if "could not determine a constructor" in problem:
            problem = f"{problem.split(' for ')[-1]} is refused; params hold plain numbers, text and lists"
        raise ParamsError(f"{where}{line}: {problem}") from e
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as e:
        raise ParamsError(f"{where}: not valid YAML ({str(e).splitlines()[0]})") from e


def load_profile(where: str, root: Path) -> dict:
    """A params file as a dict of checked names and plain values; under SMOKE stands a dict of the same. Raises ParamsError.

    Args: where: the file as it is called in messages, "params/demo.yaml"; root: what that starts from.
    """
    try:
        values = parse_yaml((root / where).read_text(encoding="utf-8"), where)
    except UnicodeDecodeError as e:
        raise ParamsError(f"{where}: not UTF-8 text ({e.reason} at byte {e.start})") from e
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ParamsError(f"{where}: expected lines like `n_scenes: 8000`, got a {type(values).__name__}")
    smoke = values.get(SMOKE, {})
    if not isinstance(smoke, dict):
        raise ParamsError(f"{where}: {SMOKE}: expected values like {{n_scenes: 512}}")
    plain = {key: value for key, value in values.items() if key != SMOKE}
    for own, place in ((plain, where), (smoke, f"{where}: {SMOKE}")):
        for key, value in own.items():
            _check_plain(key, value, place)
    return values


def parse_overrides(pairs: list[str]) -> dict:
    """`-p key=value` texts as a dict; values are YAML under the same rules. Raises ParamsError."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals:
            raise ParamsError(f"-p {key}: expected key=value, e.g. -p n_scenes=2000")
        if key in values:
            raise ParamsError(f"-p {key}: given twice; keep one")
        _check_plain(key, None, "-p")  # before its value is read, which a message may quote
        values[key] = parse_yaml(text, f"-p {key}") if text and key != RUN else text  # "2024_01" is a name
        _check_plain(key, values[key], "-p")
    return values


def _check_plain(key, value, where: str, inner: bool = False) -> None:
    """Names that are names, values that are plain data, no secrets (which would be stored in every copy)."""
    if not isinstance(key, str) or not key.isidentifier() or keyword.iskeyword(key):
        raise ParamsError(f"{where}: {str(key)[:60]!r} is not a parameter name; use letters, digits and _ only")
    text = value if isinstance(value, str) else ""
    if SECRET_KEY.search(key) or SECRET_VALUE.match(text) or SECRET_IN_URL.search(text):
        raise ParamsError(
            f"{where}: {key} looks like a secret, and parameters are stored in every run; "
            "remove it here and set it in the environment instead, e.g. export OPENAI_API_KEY=..."
        )
    if key in RESERVED:
        raise ParamsError(f"{where}: {key} is filled in by run_all.sh; remove it (-p run=NAME names the run)")
    if isinstance(value, float) and not math.isfinite(value):
        raise ParamsError(f"{where}: {key} = {value} is not a finite number")
    if isinstance(value, dict):
        raise ParamsError(f"{where}: {key} is a dict; a parameter is a value, a list, or a list of flat dicts")
    if not isinstance(value, (bool, int, float, str, list, type(None))):
        raise ParamsError(f"{where}: {key} is of the type {type(value).__name__}; expected a number, text or a list")
    for i, item in enumerate(value if isinstance(value, list) else ()):
        if inner and isinstance(item, (dict, list)):
            raise ParamsError(f"{where}: {key}[{i}] is nested too deep; a list holds values or flat dicts")
        for name, x in item.items() if isinstance(item, dict) else [(key, item)]:
            _check_plain(name, x, f"{where}: {key}[{i}]" if isinstance(item, dict) else where, inner=True)


def notebook_parameters(path: Path) -> dict:
    """Names and default values of a notebook's one cell tagged `parameters`, read from its .py source."""
    if not path.is_file():
        raise ParamsError(f"notebooks/{path.name} is missing; every stage of the pipeline is a notebook")
    cells = needs.parameter_cells(path)
    if len(cells) != 1:
        raise ParamsError(
            f'{path.name}: {len(cells)} cells are tagged "parameters"; exactly one must be (# %% tags=["parameters"])'
        )
    try:
        values = needs.literals(cells[0][1])
    except ValueError as e:
        raise ParamsError(f"{path.name}: {e}") from e
    if missing := [name for name in RESERVED if name not in values]:
        raise ParamsError(f"{path.name}: its parameters cell has no {missing[0]}; add `{missing[0]} = ...`")
    return values


def check_values(path: Path, values: dict, origin: dict[str, str]) -> None:
    """Try the settings that a notebook names at its parameters cell (`settings="module:Model ..."`), which know the ranges.

    Args: origin: parameter -> where its value came from, as a message says it; others are the notebook's own.
    """
    for name in needs.attributes(path).get("settings", "").split():
        module, _, attribute = name.partition(":")
        model = getattr(importlib.import_module(module), attribute)
        try:
            model(**{k: v for k, v in values.items() if k in model.model_fields})
        except ValueError as e:
            first = re.match(r"\w*", str(e))[0]
            raise ParamsError(f"{origin.get(first, f'notebooks/{path.name}')}: {e}") from e


def check_inputs(path: Path, values: dict, root: Path) -> None:
    """Look at what a notebook is to read, by the function that it names at its parameters cell (`before="module:function"`), which
    is given its first settings and the root. What it raises is told before a kernel is started."""
    said = needs.attributes(path)
    if "before" not in said:
        return
    look, model = (
        getattr(importlib.import_module(module), name)
        for module, _, name in (said[key].split()[0].partition(":") for key in ("before", "settings"))
    )
    try:
        look(model(**{k: v for k, v in values.items() if k in model.model_fields}), root)
    except (ValueError, RuntimeError) as e:
        raise ParamsError(str(e)) from e


def check(values: dict, notebooks: dict[str, dict], where: str) -> dict[str, dict]:
    """Each notebook's own parameters: its defaults overlaid by the values given, whose types must be those of the defaults.

    Args: notebooks: stage -> what `notebook_parameters` returned. where: the profile, for messages.
    Returns: stage -> every parameter of that notebook except RESERVED.
    """
    own = {s: {k: v for k, v in defaults.items() if k not in RESERVED} for s, defaults in notebooks.items()}
    known = sorted(set().union(*own.values()))
    for key in values:
        if key not in known:
            raise ParamsError(f"{where}: {key} is no parameter of any notebook; {nearest(key, known)}")
    result = {}
    for stage, defaults in own.items():
        model = create_model(stage, __base__=Settings, **{k: (_type(v), v) for k, v in defaults.items()})
        try:
            given = model(**{k: v for k, v in values.items() if k in defaults})
        except ValueError as e:
            raise ParamsError(f"{where}: {e}") from e
        result[stage] = {k: getattr(given, k) for k in defaults}
    return result


def _type(default):
    """The type that a parameter has by its default; a list of one kind takes that kind only."""
    kinds = {type(x) for x in default} if isinstance(default, list) else ()
    return list[kinds.pop()] if len(kinds) == 1 else type(default)
