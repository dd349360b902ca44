"""How work tells who waits for it: types of callables. A command passes its bars, a test a list."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
"""A line worth reading."""
Progress = Callable[[int, int], None]
"""How far the work is: done, of how many."""
Event = dict[str, Any]
"""What a party reports: ``party``, ``event`` (phase, progress, waiting, say), and what belongs to that."""
Show = Callable[[Event], None]
"""Where reports of parties go."""
