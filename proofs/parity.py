"""What this repo computes beside each published formula, rewritten in plain NumPy float64: a table of differences.

    ./run_all.sh prove parity

The formulas stand in tests/parity/, one file per system; the test suite runs the same items. Prints the table and
writes proofs/results/parity.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

from mtlib.run.artifacts import write_text
from tests.parity import difference, items, limit

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Returns 0 when every item is within its limit, else 1."""
    rows = [(system, name, difference(*function()), limit(name)) for system, name, function in items()]
    over = [row for row in rows if not row[2] <= row[3]]
    text = "# Parity with the published formulas\n\n"
    text += f"{len(rows)} items, {len(over)} over their limit. Difference: largest absolute one over the largest "
    text += "published value.\n\n| system | item | difference | limit |\n|---|---|---:|---:|\n"
    text += "".join(f"| {system} | {name} | {value:.1e} | {most:.0e} |\n" for system, name, value, most in rows)
    print(text)
    write_text(ROOT / "proofs" / "results" / "parity.md", text)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
