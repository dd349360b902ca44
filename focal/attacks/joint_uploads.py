"""Activations and derivatives of interactive runs, as those see them who hold no key: :mod:`focal.attacks.ciphertexts`
for joint steps.

::

    run's board, blobs --> y, c0 = F y + sum B_i, c1 = a     of every step's activations, and of its derivatives
    every polynomial   --decode as if it were a message--> slots --> one row of the owner in each lane
    attacker's own     --the same, under the same joint key-->       pairs
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from focal.attacks.ciphertexts import Chunk, Known, Made, encryption_key, polynomials
from focal.attacks.joint import JointRead
from focal.ckks import codec, ring
from focal.ckks.ring import Limb
from focal.ckks.scheme import LIMBS, Scheme
from focal.custody import inputs
from focal.heads.joint.layout import FACTOR, InteractiveLayout
from focal.protocols.blind.uploads import Place
from focal.protocols.common.epochs import Epoch
from focal.protocols.interactive import plan

Array = NDArray[np.float64]
What = Literal["activations", "derivatives"]


def of_run(read: JointRead, owner: str, what: What) -> dict[Place, Chunk]:
    """All that is there of ``owner``'s rows, by step."""
    custodians = tuple(m.name for m in read.manifest.custodians)
    epoch, out = Epoch(0, custodians, 0, read.run_id), dict[Place, Chunk]()
    for step in range(read.steps):
        decided = {"activations": "present", "derivatives": "answered"}[what]
        owners = read.said[read.manifest.server.name, f"{decided}/{step}"].owners
        headers: Mapping[str, Any] = {name: read.said[name, f"{what}/{step}"] for name in owners}
        round, _, wanted, _ = plan.inputs(read.manifest, epoch, step, what, headers)
        i = owners.index(owner)
        given = [(c, read.view.blob(read.said[c, f"{round}/reveal"].blobs[i])) for c in custodians]
        lists, y = read.said[custodians[0], f"{round}/commit"].lists, read.view.blob(headers[owner].chunk)
        a = inputs.public_random(read.scheme, read.run_id, lists, wanted[i].item, wanted[i].limbs)
        whole = inputs.combine(read.scheme, a, [(owner, y)], given, wanted[i].factor)
        out[step, what, 0, 0] = Chunk(codec.unpack_masked(read.scheme, y, owner), whole)
    return out


def messages(scheme: Scheme, layout: InteractiveLayout, values: Array, what: What) -> list[Made]:
    """``values`` (p, R or C) of any number of rows, as many messages as they fill."""
    out = []
    slots = {"activations": layout.activation_slots, "derivatives": layout.derivative_slots}[what]
    for step, start in enumerate(range(0, len(values), layout.rows)):
        message = inputs.message(scheme, slots(values[start : start + layout.rows], 0))
        out.append(Made((step, what, 0, 0), message, LIMBS, FACTOR))
    return out


def signals(
    scheme: Scheme,
    layout: InteractiveLayout,
    chunks: Mapping[Place, Chunk],
    rows: Sequence[range],
    known: Known | None = None,
) -> Array:
    """(sum of rows, d): what each polynomial holds in the slots of ``rows``, of each chunk in turn."""

    def read(place: Place, values: Array) -> Array:
        own = ring.embed(values).real.reshape(layout.rows, layout.features)
        if place[1] == "activations":
            return own
        lanes = own.reshape(layout.rows, layout.lanes, -1).mean(axis=2)  # a derivative fills its lane
        classes = (np.arange(layout.lanes) - np.arange(layout.rows)[:, None]) % layout.lanes
        out = np.empty_like(lanes)
        np.put_along_axis(out, classes, lanes, axis=1)
        return out[:, : layout.outputs]

    parts = polynomials(scheme, chunks, known)
    found = [
        np.hstack([read(place, part(place)) for part in parts])[at.start : at.stop]
        for place, at in zip(chunks, rows, strict=True)
    ]
    return np.concatenate(found)


def own_key(read: JointRead) -> tuple[list[Limb], list[Limb]]:
    """What :meth:`focal.attacks.ciphertexts.Read.encryption_key` finds in a blind run."""
    return encryption_key(read.view, read.scheme, read.run_id.hex(), read.said)
