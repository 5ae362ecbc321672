"""Every command line of README.md and docs/ parses: its profile, its parameters and each key of a method exist."""

import re
import shlex

import pytest

from mtlib.coders.presets import PRESETS
from mtlib.coders.sparse_coder import SparseCoderConfig
from mtlib.learn.config import MethodsConfig, TrainConfig
from mtlib.run import params, profiles
from proofs.commands import COMMAND, commands, profile

PLACES = profiles.Places()


@pytest.mark.parametrize("command", commands())
def test_documented_command_parses(command):
    if not (name := profile(command)) or name.startswith("<"):
        return
    words = shlex.split(command)[1:]
    given = params.parse_overrides([words[i + 1] for i, word in enumerate(words) if word == "-p"])
    for stage in profiles.stages_of(name, given, PLACES):  # the profile and its notebooks exist
        assert (PLACES.root / "notebooks" / f"{stage}.py").is_file()
    own = profiles.stages_of(name, given, PLACES)
    notebooks = {s: params.notebook_parameters(PLACES.root / "notebooks" / f"{s}.py") for s in own}
    plain = {k: v for k, v in given.items() if k not in ("run", profiles.NOTEBOOKS)}
    params.check(plain, notebooks, command)
    if "methods" in given:
        MethodsConfig(methods=given["methods"], seeds=[0])


def test_commands_are_found_in_every_table_of_the_five_systems():
    text = (PLACES.root / "docs" / "commands.md").read_text(encoding="utf-8")
    sections = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    assert len(sections) == 5 and all(COMMAND.search(section) for section in sections)


def test_every_setting_as_published_is_in_the_table_of_differences():
    page = (PLACES.root / "docs" / "differences.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^\| [^|]+ \| (\w+) \| `(\w+)` \| ([^|]+) \| ([^|]+) \|", page, re.MULTILINE))
    presets = {name: parts for name, parts in PRESETS.items() if "as_published" in parts}
    fields = SparseCoderConfig.model_fields | TrainConfig.model_fields
    wanted = set()
    for name, parts in presets.items():
        base = parts["coder"] | parts["train"]
        for key, value in parts["as_published"].items():
            wanted.add((name, key, str(base.get(key, fields[key].default)), str(value)))
    assert told == wanted
