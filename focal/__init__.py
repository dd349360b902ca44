"""FOCAL: hospitals train one diagnostic model together on encrypted activations.

::

    run = focal.train("demo")                         # a packaged configuration, a file, or a RunConfig
    run.summary.auroc.encrypted
    model = focal.load(run)                           # a torch module; nothing of it is encrypted any more
    focal.evaluate(run, "new.csv", "new.zip")["auroc"]

The commands of these names are calls of them (:mod:`focal.api`); only ``focal simulate`` makes up its own clinics.
``import focal`` itself loads none of what they need: a server never imports torch.

Reading order: :mod:`focal.config` (what a run is), :mod:`focal.heads.linear.layout` (where numbers sit in slots),
:mod:`focal.heads.linear.engine` (training on ciphertexts), :mod:`focal.protocols` (who does what, and when).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = [
    "FocalError",
    "Run",
    "RunConfig",
    "audit",
    "evaluate",
    "explain",
    "load",
    "predict",
    "report",
    "simulate",
    "train",
]

if TYPE_CHECKING:
    from focal.api import *  # noqa: F403


def __getattr__(name: str) -> Any:
    """A name of the face, from :mod:`focal.api`, when it is first asked for."""
    if name not in __all__:
        raise AttributeError(f"module 'focal' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module("focal.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
