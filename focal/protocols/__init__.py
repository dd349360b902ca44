"""Who does what, and when. Each role is a script that reads from top to bottom; its journal makes it durable.

A role never branches on "where was I": after a restart it runs again from the top. Whatever it made before (nonces, key
contributions, ciphertexts, shares, signatures) comes back from its journal with the same bytes, and what the server
has is not sent again, so it arrives within seconds where it was stopped.

::

    common       what the roles of every protocol share: say, hear, commit and reveal, the run id,
                 keys, refresh, release
    blind        one upload, frozen lower segments: institutions may go offline until the release
    interactive  joint steps: each institution trains its lower segment under the encrypted head

A protocol is a package with the same modules: ``plan`` (what follows from the manifest), ``compute`` (the one
loop over its steps), and the four parties' roles, siblings under the common ones. Nobody outside asks which
protocol a run is of: :func:`of` knows.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from focal.config import LayoutConfig, RunConfig
from focal.manifest import Manifest
from focal.net import messages as msg


class Released(NamedTuple):
    """What a run opens in the end."""

    items: tuple[str, ...]
    """Plan items, one for each ciphertext."""
    groups: tuple[int, ...]
    """Class group of each, whose lanes without a class are zeroed before it is opened."""
    topics: tuple[str, ...]
    """The refreshes that their ciphertexts come from, ``refresh/STEP/...``, of the last steps; several of one where it
    was asked for in parts."""

    def ciphertexts(self, done: Sequence[msg.StepDone]) -> tuple[str, ...]:
        """Digests of what is released, from the statements of all steps."""
        steps = len({topic.split("/")[1] for topic in self.topics})
        return tuple(output for statement in done[-steps:] for output in statement.outputs)


class Plan(Protocol):
    """What follows from a manifest alone: a protocol's ``plan`` module."""

    TRUST: str
    """What everybody must be told who signs or starts a run."""
    CARRIED_NOISE: float
    """Bound on the noise of what is released."""
    OWN_PHASES: tuple[str, ...]
    """Phases in which each institution works for itself: a summary has the slowest one's seconds."""

    def check_members(self, manifest: Manifest) -> None: ...
    def layout(self, manifest: Manifest) -> Any: ...
    def refreshes(self, manifest: Manifest) -> int: ...
    def released(self, manifest: Manifest) -> Released: ...
    def own_fields(self, config: RunConfig) -> dict[str, Any]: ...
    def own_local_fields(self, config: RunConfig) -> dict[str, Any]: ...
    def wish(self, config: RunConfig) -> LayoutConfig: ...
    def features(self, manifest: Manifest) -> int: ...
    def settled(
        self, manifest: Manifest, wish: LayoutConfig, memory_bytes: float, computing: int = 0
    ) -> tuple[Manifest, str]: ...
    def describe(self, manifest: Manifest) -> str: ...
    def warnings(self, manifest: Manifest) -> list[str]: ...
    def facts(self, manifest: Manifest, scheme: Any) -> dict[str, Any]: ...
    def stages(self, manifest: Manifest) -> int: ...
    def stage(self, manifest: Manifest, topic: str) -> int | None: ...
    def stage_end(self, manifest: Manifest, stage: int) -> tuple[bool, str]: ...


@dataclass(frozen=True)
class Kind:
    """One protocol: where its modules are. Paths, not classes: a server or custodian never loads torch."""

    name: str
    package: str
    prefix: str
    """Of its classes: ``Blind`` makes ``BlindServer``."""
    compared: str
    """The module that compares a local run of it with its plaintext twin and the baselines
    (``compare(run, manifest, say)``)."""
    joint: bool
    """Do institutions take every step together? Then their lower segments train with the head, and gradients are opened
    on the way. Otherwise each gives its rows once, and nothing but the final weights is opened."""

    @property
    def plan(self) -> Plan:
        plan: Any = importlib.import_module(f"{self.package}.plan")
        return plan

    @property
    def compare(self) -> Any:
        return importlib.import_module(self.compared).compare

    def part(self, part: str) -> Any:
        """The class of a role (``server``, ``custodian``, ``institution``), or of the ``audit``."""
        return getattr(importlib.import_module(f"{self.package}.{part}"), f"{self.prefix}{part.capitalize()}")


PROTOCOLS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "blind",
            package="focal.protocols.blind",
            prefix="Blind",
            compared="focal.runs.compare_blind",
            joint=False,
        ),
        Kind(
            "interactive",
            package="focal.protocols.interactive",
            prefix="Joint",
            compared="focal.runs.compare_joint",
            joint=True,
        ),
    )
}


class _Run(Protocol):
    """A manifest, a configuration, or a summary."""

    @property
    def protocol(self) -> str: ...


def of(run: _Run) -> Kind:
    """The protocol of a run."""
    return PROTOCOLS[run.protocol]


def check_complete(manifest: Manifest) -> None:
    """Raise unless the members can run the manifest's protocol."""
    manifest.check_complete()
    of(manifest).plan.check_members(manifest)
