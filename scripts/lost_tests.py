"""Which tests of an earlier revision are no more, by name: `python scripts/lost_tests.py 2f705bd`.

One line for each, with where it stood then. Where each has gone is for whoever removed it to say: docs/testing.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True).stdout


def tests(revision: str) -> dict[str, str]:
    """Test function -> its file."""
    found = {}
    for path in git("ls-tree", "-r", "--name-only", revision, "tests").splitlines():
        if path.rpartition("/")[2].startswith("test_") and path.endswith(".py"):
            for node in ast.walk(ast.parse(git("show", f"{revision}:{path}"))):
                if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                    found[node.name] = path
    return found


def main() -> None:
    before, now = tests(sys.argv[1]), tests("HEAD")
    lost = [name for name in before if name not in now]
    print(f"{len(before)} tests then, {len(now)} now; {len(lost)} of them under no such name:")
    for name in lost:
        print(f"  {before[name]}::{name}")


if __name__ == "__main__":
    main()
