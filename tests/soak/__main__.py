"""python -m tests.soak [--rounds N] [--seed S]: kill -9 in a loop, under load."""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.soak.kills import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="radledger-soak-") as folder:
        found = asyncio.run(soak(Path(folder), options.rounds, options.seed, print))
    print(
        f"{found['executed']} transactions at height {found['height']}: none lost, none doubled, "
        "all nodes alike"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
