"""100,000 malformed messages: no decoder dies, none accepts a wrong value. `make fuzz` goes on for longer."""

from __future__ import annotations

from fuzz import fuzz


def test_a_hundred_thousand_malformed_messages() -> None:
    counts = fuzz(cases=100_000, seed=20260415)
    assert counts["cases"] >= 100_000
    print(dict(counts))
    for target in (
        "request frame",
        "reply frame",
        "record",
        "signed record",
        "sealed message",
        "projection",
        "ciphertext blob",
    ):
        assert counts[f"{target}: refused"] > 500, f"{target} was hardly tried"
