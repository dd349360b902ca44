"""What `focal` costs before it does anything: how long `focal --help` takes, and what a server installs.

    python scripts/footprint.py

Prints; asserts nothing. What is aimed at: half a second, 500 MB without extras.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def helped() -> float:
    """Seconds until ``focal --help`` has printed, on a warm disk."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "focal", "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def needed(extra: str = "") -> dict[str, Distribution]:
    """All that ``pip install focal[extra]`` installs beside focal itself, as it is installed here."""
    found: dict[str, Distribution] = {}
    todo = [("focal", extra)]
    while todo:
        name, wanted = todo.pop()
        for line in distribution(name).requires or []:
            requirement = Requirement(line)
            if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
                continue
            behind = canonicalize_name(requirement.name)
            if behind == "focal":
                todo += [("focal", more) for more in requirement.extras]
            elif behind not in found:
                found[behind] = distribution(behind)
                todo += [(behind, more) for more in ("", *requirement.extras)]
    return found


def size(installed: Distribution) -> int:
    paths = [installed.locate_file(file) for file in installed.files or []]
    return sum(path.stat().st_size for path in paths if path.is_file())  # type: ignore[attr-defined]


def main() -> None:
    helped()
    print(f"focal --help: {statistics.median(helped() for _ in range(5)):.2f} s (median of 5)")
    for extra in ("", "site"):
        sizes = sorted(((size(d), name) for name, d in needed(extra).items()), reverse=True)
        largest = ", ".join(f"{name} {count / 1e6:.0f}" for count, name in sizes[:4])
        total = sum(count for count, _ in sizes) / 1e6
        print(f"pip install focal{f'[{extra}]' * bool(extra)}: {total:.0f} MB in {len(sizes)} packages ({largest})")


if __name__ == "__main__":
    main()
