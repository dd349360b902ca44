"""A summary of a run that never was, with all that the result contract asks for."""

from __future__ import annotations

from typing import Any

from focal.measure.summary import Auroc, AurocInterval, Summary, build_summary

CUSTODIANS = ("custodian-1", "custodian-2")
SITES = ("hospital-a", "hospital-b", "hospital-c")


def summary(**changes: Any) -> Summary:
    local = Auroc(
        encrypted=0.765, plaintext_twin=0.766, institutions=dict.fromkeys(SITES, 0.74), pooled_plaintext=0.7651
    )
    interval = AurocInterval(
        encrypted=(0.74, 0.79),
        plaintext_twin=(0.74, 0.79),
        institutions=dict.fromkeys(SITES, (0.7, 0.77)),
        pooled_plaintext=(0.75, 0.78),
    )
    traffic = {party: {"upload": {"up": 101_000_000, "down": 5}} for party in ("server", *SITES, *CUSTODIANS)}
    content: dict[str, Any] = dict(
        protocol="blind", dataset="odir5k", auroc=local, auroc_ci95=interval,
        seconds=dict(keys=9.0, features=14.0, upload=7.0, train=19.0, release=2.0, total=43.0),
        traffic=traffic, steps=5, params={"ring": 16384, "features": 64}, security_bits=128,
        release=dict(flooding_bits=30.0, precision_bits=12.5, openings=1),
        verify=dict.fromkeys(CUSTODIANS, "off"), max_abs_weight_error=2e-5,
    )  # fmt: skip
    return build_summary(**(content | changes))
