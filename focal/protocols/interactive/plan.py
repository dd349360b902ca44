"""What follows from the manifest of an interactive run alone, and what is checked of who takes part in a step."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from focal import framing
from focal.ckks.scheme import LIMBS, Scheme
from focal.config import InteractiveConfig, InteractiveRunConfig, LayoutConfig
from focal.custody import projections
from focal.custody.inputs import Input
from focal.custody.projections import Statement
from focal.errors import ConfigError, Refused
from focal.heads.joint.layout import FACTOR, MOVED_LIMBS, OPENING, InteractiveLayout, row_table
from focal.heads.joint.limits import HEAD_NOISE, MAX_ACTIVATION, MAX_DERIVATIVE, check_steps, request_size
from focal.heads.joint.limits import check_contributors as check
from focal.heads.joint.twin import Update
from focal.heads.linear.cost import blob_bytes, masked_bytes, share_bytes
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.protocols import Released
from focal.protocols.common import refreshing
from focal.protocols.common.epochs import Epoch
from focal.protocols.common.facts import common_facts
from focal.protocols.common.inputs import Claim

CARRIED_NOISE = HEAD_NOISE
OWN_PHASES: tuple[str, ...] = ("features", "upload")
TRUST = (
    "interactive: the size of activations and derivatives is checked to within a factor of 2^11 only; "
    "with larger ones than true an institution's openings say more of the joint key than they hide, "
    "whoever verifies; each learns the head, and the others' summed gradients (SECURITY.md)"
)
"""What everybody must be told who signs or starts an interactive run."""
Header = msg.Activations | msg.Derivatives


def settings(manifest: Manifest) -> InteractiveConfig:
    """The interactive part of a manifest that has one."""
    assert manifest.interactive is not None
    return manifest.interactive


def check_members(manifest: Manifest) -> None:
    """Raise unless the members can run joint steps."""
    unknown = set(settings(manifest).batches) - {m.name for m in manifest.institutions}
    if unknown:
        raise ConfigError(
            f"interactive.batches names {', '.join(sorted(unknown))}, which is no institution of the manifest"
        )
    if manifest.clinics:
        raise ConfigError(
            f"{', '.join(m.name for m in manifest.clinics)}: a clinic comes once, and in protocol interactive "
            "institutions take every step (focal manifest add without --clinic)"
        )
    if len(manifest.institutions) < 3:
        raise ConfigError(
            "an interactive run needs at least three institutions: with two, each would learn the other's gradient"
        )


def batch(manifest: Manifest, name: str) -> int:
    """The most rows that an institution brings to a joint step."""
    config = settings(manifest)
    return min(config.batches.get(name, config.batch), manifest.member(name).rows or 0)


def layout(manifest: Manifest) -> InteractiveLayout:
    """The slot layout of a joint batch."""
    return InteractiveLayout(manifest.ckks.ring // 2, settings(manifest).features, manifest.outputs)


def batches(manifest: Manifest) -> dict[str, int]:
    """Institution -> the most rows that it brings to a joint step."""
    return {m.name: batch(manifest, m.name) for m in manifest.institutions}


def table(manifest: Manifest) -> dict[str, range]:
    """Institution -> its rows of the joint batch. Raises :class:`focal.errors.FocalError` when they
    do not fit the ring."""
    return row_table(layout(manifest), batches(manifest))


def update(manifest: Manifest) -> Update:
    """The head's step. Raises :class:`focal.errors.FocalError` when its noise would outgrow the release's smudging."""
    found = Update(settings(manifest).head_rate, settings(manifest).momentum)
    check_steps(found, total(manifest), sum(batches(manifest).values()), len(manifest.custodians))
    return found


def weights_item(step: int) -> str:
    return f"train/{step}/weights/-/merged/-"


def opening_items(step: int, kind: str, owners: tuple[str, ...]) -> tuple[str, ...]:
    """Plan items of an opening; ``kind`` is ``logits`` or ``input-gradient``.

    None in the first step: its weights are the all-zero ciphertext, so everybody knows that logits
    and gradients are zero.
    """
    return () if step == 0 else tuple(f"train/{step}/{kind}/-/-/{owner}" for owner in owners)


def input_item(epoch: Epoch, step: int, what: str, owner: str) -> str:
    """What an institution's ``activations`` or ``derivatives`` of a step are called: in another epoch otherwise, so
    that they are masked anew."""
    return f"{step}/{what}/{owner}{epoch.suffix}"


def statement(manifest: Manifest, seed: bytes, name: str, step: int, what: str, rows: int, chunk: str) -> Statement:
    """That the activations or derivatives of ``rows`` rows are as large as honest ones, at most,
    in root mean square."""
    n, scale, largest = (
        manifest.ckks.ring,
        2.0**manifest.ckks.scale_bits,
        MAX_ACTIVATION if what == "activations" else MAX_DERIVATIVE,
    )
    rms = largest * (rows / layout(manifest).rows) ** 0.5
    return Statement(seed, name, f"{step}/{what}", (chunk,), projections.norm_bound(scale, n, 1, rms))


def inputs(
    manifest: Manifest, epoch: Epoch, step: int, what: str, headers: Mapping[str, Header]
) -> tuple[str, str, list[Input], list[Claim]]:
    """The round in which custodians contribute to ``activations`` or ``derivatives`` of a step, the
    digest of all that is put in, the inputs, and what is claimed of them: one for each owner, whose rows
    are kept apart until they are masked."""
    fields = (f for n, h in headers.items() for f in (n.encode(), encode(h)))
    lists = framing.digest(b"focal/joint-inputs/v1", what.encode(), *fields).hex()
    wanted = [
        Input(input_item(epoch, step, what, name), LIMBS, ((name, header.label),), FACTOR)
        for name, header in headers.items()
    ]
    claims = [
        Claim(
            statement(manifest, epoch.seed, name, step, what, h.rows, h.chunk),
            (input_item(epoch, step, what, name),),
            h.label,
            h.proof,
        )
        for name, h in headers.items()
    ]
    return f"inputs/{step}/{what}", lists, wanted, claims


def opening_context(item: str, seed: bytes) -> bytes:
    """What a sealed opening share is bound to."""
    return framing.framed(b"focal/open/sealed/v1", item.encode(), seed)


def total(manifest: Manifest) -> int:
    """Joint steps of the run: as many as were asked for and as the openings of one key allow,
    two for each institution and step."""
    config = settings(manifest)
    each = 2 * len(manifest.institutions)
    spare = each * (len(manifest.custodians) - manifest.needed)  # a step that is made anew opens once more
    return min(config.steps, 1 + max(0, config.max_openings_per_key - spare) // each)


def schedule(manifest: Manifest) -> InteractiveConfig:
    """The settings with the steps that the run really takes: what the institutions' training follows."""
    return settings(manifest).model_copy(update={"steps": total(manifest)})


def round_after(manifest: Manifest, step: int) -> int | None:
    """The averaging round (1, 2, ...) that follows joint step ``step``, if any; one follows the last step."""
    every, done = settings(manifest).average_every, step + 1
    return -(-done // every) if done % every == 0 or done == total(manifest) else None


def released(manifest: Manifest) -> Released:
    """What is released in the end: the last weights and those of the step before, from which the momentum is read."""
    steps = total(manifest)
    last = range(max(0, steps - 2), steps)
    items = tuple(f"train/{t}/release/-/merged/-" for t in last)
    return Released(items, (0,) * len(last), tuple(f"refresh/{t}/weights" for t in last))


PARTS = ("logits", "gradients", "head")
"""The three stages of a joint step."""
_SPOKEN = {
    **dict.fromkeys(("activations", "present", "logits"), 0),
    **dict.fromkeys(("derivatives", "answered", "gradients"), 1),
    **dict.fromkeys(("step", "refresh"), 2),
}
"""What is spoken of -> in which of them."""


def stages(manifest: Manifest) -> int:
    """Three for every step: activations until logits are opened, derivatives until gradients are, the head's
    refresh."""
    return len(PARTS) * total(manifest)


def stage(manifest: Manifest, topic: str) -> int | None:
    """The stage of a topic; None for what concerns no custodian (:mod:`focal.protocols.common.epochs`)."""
    what, *rest = topic.split("/")
    if what == "release" or topic == refreshing.AGAIN:
        return stages(manifest)
    if what in ("inputs", "open"):  # inputs/STEP/activations/commit, open/STEP/logits; but one key for masks serves all
        what = rest[1] if len(rest) > 1 else ""
    part = _SPOKEN.get(what)
    return None if part is None else len(PARTS) * int(rest[0]) + part


def steps_before(manifest: Manifest, stage: int) -> int:
    """Steps that are done where a stage begins."""
    return stage // len(PARTS)


def stage_end(manifest: Manifest, stage: int) -> tuple[bool, str]:
    """What was sent is done with when every custodian has opened what came of it; of the first step nothing is."""
    step, part = divmod(stage, len(PARTS))
    if part == 2:
        return True, f"step/{step}"
    if step:
        return False, f"open/{step}/{PARTS[part]}"
    return False, f"inputs/0/{('activations', 'derivatives')[part]}/reveal"


def refreshes(manifest: Manifest) -> int:
    """Collective refreshes of the run: the head's, once a step."""
    return total(manifest)


def own_fields(config: InteractiveRunConfig) -> dict[str, Any]:
    """What a manifest of this protocol has beside what all have."""
    from focal.segments.upper import released_digest

    return {"interactive": config.interactive, "start": released_digest(config.start) if config.start else None}


def own_local_fields(config: InteractiveRunConfig) -> dict[str, Any]:
    """What an institution's local file has of this protocol: how it trains, and what it begins with."""
    start = config.start.absolute() if config.start else None
    return {"precision": config.precision, "logger": config.logger, "start": start}


def wish(config: InteractiveRunConfig) -> LayoutConfig:
    """What the configuration says of the layout: nothing, for there is no choice."""
    return LayoutConfig()


def features(manifest: Manifest) -> int:
    """Columns that the head reads."""
    return settings(manifest).features


def settled(manifest: Manifest, wish: LayoutConfig, memory_bytes: float, computing: int = 0) -> tuple[Manifest, str]:
    """The manifest as it is, for there is no choice to make, and what it costs, in lines that a person can check."""
    return manifest, f"{costs(manifest)}\nwarning: {TRUST}"


def describe(manifest: Manifest) -> str:
    """What is about to be signed or run, in lines that a person can check before it begins."""
    trains = settings(manifest).trainable
    lines = [
        f"training     interactive: '{trains}' of the lower segment trains, the head encrypted; "
        f"release: {manifest.approve}"
    ]
    if manifest.start is not None:
        lines.append(f"start        the released model with sha256 {manifest.start[:16]}")
    return "\n".join((*lines, costs(manifest)))


def warnings(manifest: Manifest) -> list[str]:
    """What everybody must be told who signs."""
    return [TRUST]


def costs(manifest: Manifest) -> str:
    """What a run will cost. Raises :class:`focal.errors.FocalError` when it cannot be."""
    config, shape, owners, n = settings(manifest), layout(manifest), table(manifest), manifest.ckks.ring
    slot = request_size(update(manifest), shape, config.min_rows_of_others + 1)
    hidden = refreshing.bounds(Scheme(manifest.ckks, "costs"), len(manifest.custodians), shape).others_bits
    custodians, mb, count = len(manifest.custodians), 1e6, total(manifest)
    up, given = 2 * masked_bytes(n), 2 * blob_bytes(n, LIMBS, 1)
    share, opened = blob_bytes(n, OPENING.limbs, 1), blob_bytes(n, OPENING.limbs, 2)
    refreshed = blob_bytes(n, MOVED_LIMBS, 2) + share_bytes(n, MOVED_LIMBS, LIMBS)
    asked = 2 * len(owners) * (opened + share) + len(owners) * given + refreshed
    lines = [
        f"joint step: {sum(map(len, owners.values()))} "
        f"of {shape.rows} rows ({', '.join(f'{k} {len(v)}' for k, v in owners.items())}), R = {shape.features}, "
        f"{len(shape.rotations)} rotation keys; {count} steps",
        f"bytes:      an institution and step {up / mb:.1f} MB up, {2 * custodians * share / mb:.1f} MB down; "
        f"a custodian and step {asked / mb:.1f} MB, and all inputs if it verifies; disk at the server "
        f"{count * (len(owners) * up + custodians * asked) / 1e9:.1f} GB at most",
        f"openings:   {2 * len(owners)} a step, "
        f"{2 * len(owners) * (count - 1)} of at most {config.max_openings_per_key} under this key",
    ]
    bits = math.log2(slot) + manifest.ckks.scale_bits
    lines.append(
        f"refreshes:  of less than 2^{bits:.0f} a coefficient; others' masks hide that to 2^{bits - hidden:.0f}"
    )
    if manifest.start is None:
        lines.append(
            "start:      a blind run's projection and an untrained head; a trained one takes a minute more (start: RUN)"
        )
    if count < config.steps:
        lines.append(
            f"            the key allows {count} of {config.steps} steps: continue in a new run with start: RUN"
        )
    return "\n".join(lines)


def check_headers(headers: Mapping[str, Header], step: int, manifest: Manifest) -> None:
    """Raise :class:`Refused` (``upload``) unless each header is of this step and within its institution's batch."""
    limits = batches(manifest)
    for name, header in headers.items():
        if header.step != step or not 1 <= header.rows <= limits[name]:
            raise Refused(
                "upload",
                f"'{name}' sent {header.rows} rows for step {header.step}; step {step} takes 1 to {limits[name]}",
            )


def check_contributors(manifest: Manifest, rows: Mapping[str, int]) -> None:
    """Raise :class:`Refused` unless a step with these rows keeps every owner from singling out another's gradient."""
    config = settings(manifest)
    check(rows, batches(manifest), config.min_rows_of_others)


def facts(manifest: Manifest, scheme: Scheme) -> dict[str, Any]:
    """What a summary says of an interactive run."""
    shape, steps = layout(manifest), total(manifest)
    own = {
        "rows": manifest.rows,
        "joint_rows": shape.rows,
        "interactive": json.loads(settings(manifest).model_dump_json()),
    }
    openings = 2 * len(manifest.institutions) * (steps - 1) + min(2, steps)
    return common_facts(manifest, scheme, shape, steps, openings, refreshes(manifest), own)


def average_label(number: int) -> str:
    """Label of the secure sum of an averaging round."""
    return f"average-{number}"
