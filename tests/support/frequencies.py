"""How often something was drawn, against how often it should have been."""

from __future__ import annotations

import math
from collections import Counter


def chi_square(found: Counter[int], expected: dict[int, float], draws: int) -> float:
    """Standard deviations by which the statistic exceeds its mean; cells with few expected draws are pooled."""
    cells = [(found[k], draws * p) for k, p in expected.items() if draws * p >= 10]
    rest = draws - sum(n for n, _ in cells), draws - sum(e for _, e in cells)
    cells += [rest] if rest[1] > 1 else []
    statistic, freedom = sum((n - e) ** 2 / e for n, e in cells), len(cells) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


def gaussian_weights(sigma: float) -> dict[int, float]:
    """The discrete Gaussian about zero, as far as twelve deviations."""
    weights = {k: math.exp(-(k**2) / (2 * sigma**2)) for k in range(-int(12 * sigma), int(12 * sigma) + 1)}
    total = math.fsum(weights.values())
    return {k: w / total for k, w in weights.items()}
