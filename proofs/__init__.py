"""Long checks with a figure each; `./run_all.sh prove` lists them. Here is what they share: how they end."""

from pathlib import Path

from mtlib.run.artifacts import versions, write_text

RESULTS = Path(__file__).parent / "results"


def made_with() -> str:
    """The versions that a result is of, in words."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())


def conclude(name: str, text: str, holds: bool) -> int:
    """Print what a proof found and keep it as results/<name>.md, with whether it holds as its last line. Returns: 0 if it does, else 1."""
    text = f"{text.rstrip()}\n\n{'Holds.' if holds else 'Does not hold.'}\n"
    print(text)
    write_text(RESULTS / f"{name}.md", text)
    return 0 if holds else 1
