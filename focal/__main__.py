"""``python -m focal``."""

from focal.cli import main

main()
