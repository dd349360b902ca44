"""Provisioning by hand, for parties on several machines: from a configuration to a manifest that all have signed.

::

    begin(config) -> a manifest without members --add_member(public file)--> ...
                                                --sign(key file)--> the same bytes everywhere

    look_at        a data set, all of it
    describe       what one signs
    check_party    whether this party could begin

On one machine :func:`focal.runs.local.prepare` does the same for all parties at once.
``say`` gets lines, ``warn`` those that must be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import TypeAdapter, ValidationError

from focal import configs
from focal.config import (
    ConsortiumConfig,
    DatasetConfig,
    LayoutConfig,
    LocalConfig,
    Name,
    ProjectionConfig,
    RunConfig,
    TrainingConfig,
)
from focal.errors import FocalError
from focal.extras import require
from focal.manifest import LowerSpec, Manifest, Member
from focal.net.identity import Identity, check_signatures, read_public, sign_manifest
from focal.protocols import check_complete, of
from focal.protocols.common import epochs
from focal.reading import explain, read, write
from focal.segments.projection import check_features
from focal.task import Task
from focal.telling import Progress, Say

if TYPE_CHECKING:
    from focal.data.examine import Examined
    from focal.segments.lower import WeightsSource


def new_identity(name: str, out: Path) -> tuple[Path, Path]:
    """A party's identity in ``out``; returns its private and its public file."""
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        hint = "use at most 32 lower-case letters, digits, '-' and '_', a letter or digit first"
        raise FocalError(f"'{name}' cannot be a party's name", hint=hint) from None
    identity = Identity.new(name)
    private, public = out / f"{name}.key.json", out / f"{name}.public.json"
    out.mkdir(parents=True, exist_ok=True)
    identity.save(private)
    member = identity.member("custodian", verify="off")
    keys = {"name": name, "sign": member.sign, "seal": member.seal, "curve": member.curve}
    public.write_text(json.dumps(keys, indent=2) + "\n")
    return private, public


def begin(c: RunConfig, out: Path) -> tuple[Manifest, WeightsSource]:
    """Write a manifest without members; returns it, and where the lower segment's weights are from."""
    from focal.segments.lower import build_lower

    if out.exists():
        raise FocalError(f"{out} exists already", hint="delete it, or choose another --out")
    classes, task = c.dataset.classes, c.dataset.task
    if classes is None or task is None:
        from focal.data import load

        table = load(c.dataset, c.seed)
        classes, task = table.classes, table.task
    segment, source = build_lower(c.lower, c.lower.weights)
    manifest = draft(c, (), classes, task, segment.spec)
    write(manifest, out)
    return manifest, source


def members(
    consortium: ConsortiumConfig, identities: Mapping[str, Identity], rows: Mapping[str, int], endpoint: str
) -> tuple[Member, ...]:
    """Everybody's signed entry where all are set up at once; ``rows``: institution -> its training rows."""
    verifiers = {"first": 1, "all": consortium.custodians, "none": 0}[consortium.verify]
    custodians = (
        identities[name].member("custodian", verify="lockstep" if i < verifiers else "off", guard=i == 0 < verifiers)
        for i, name in enumerate(consortium.custodian_names())
    )
    institutions = (
        identities[name].member("institution", rows=count, clinic=name in consortium.clinics)
        for name, count in rows.items()
    )
    return identities["server"].member("server", endpoint=endpoint), *custodians, *institutions


def half_of_memory() -> float:
    """Bytes that a run on this machine may plan with."""
    return 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def draft(
    c: RunConfig, members: tuple[Member, ...], classes: tuple[str, ...], task: Task, lower: LowerSpec
) -> Manifest:
    """A manifest of a configuration, not yet settled, nor signed."""
    manifest = Manifest(
        name=c.name,
        protocol=c.protocol,
        dataset=c.dataset_name,
        members=members,
        classes=classes,
        task=task,
        lower=lower,
        projection=ProjectionConfig(**c.projection.model_dump()),
        training=TrainingConfig(**c.training.model_dump()),
        ckks=c.ckks,
        approve=c.consortium.approve,
        accept_leak=c.consortium.accept_leak,
        threshold=c.consortium.threshold,
        pooled_roc=c.consortium.pooled_roc,
        **of(c).plan.own_fields(c),
    )
    check_columns(manifest)
    return manifest


def check_columns(m: Manifest) -> None:
    """As many columns as the lower segment can give: later than here the run would end when the first
    projection is made."""
    check_features(of(m).plan.features(m), m.lower.dim)


def add_member(
    m: Manifest,
    path: Path,
    public: Path,
    role: Literal["server", "institution", "custodian"],
    *,
    rows: int | None = None,
    clinic: bool = False,
    endpoint: str | None = None,
    verify: Literal["off", "lockstep"] = "off",
    guard: bool | None = None,
    threshold: int | None = None,
    wish: LayoutConfig,
    say: Say,
) -> Manifest:
    """``m``, which lies in ``path``, with one more member, and its layout planned again.
    Signatures given before are void."""
    guards = guard if guard is not None else verify == "lockstep" and m.guard is None
    own: dict[str, dict[str, Any]] = {
        "server": {"endpoint": endpoint},
        "institution": {"rows": rows, "clinic": clinic},
        "custodian": {"verify": verify, "guard": guards},
    }
    member = read_public(public, role=role, **own[role])
    grown = m.model_dump(mode="json") | {
        "members": [*(x.model_dump(mode="json") for x in m.members), member.model_dump(mode="json")],
        "signatures": {},
    }
    if threshold is not None:
        grown["threshold"] = threshold
    new = _validated(grown, path)
    if new.institutions and new.custodians:
        new, cost = of(new).plan.settled(new, wish, 64e9)
        say(cost)
    write(new, path)
    return new


def _validated(fields: dict[str, Any], path: Path) -> Manifest:
    try:
        return Manifest.model_validate(fields)
    except ValidationError as e:
        raise explain(e, path) from None


def sign(path: Path, keys: Path) -> Manifest:
    """Sign the manifest in ``path`` as it stands."""
    m = read(Manifest, path)
    check_complete(m)
    signed = sign_manifest(m, Identity.load(keys))
    write(signed, path)
    return signed


def describe(m: Manifest, say: Say, warn: Say) -> None:
    """What is about to be signed or run: members, parameters, bytes, memory, time, who verifies."""
    check_signatures(m, need_all=False)
    check_columns(m)
    for member in m.members:
        policy = f"verify: {member.verify}{', guard' * member.guard}"
        rows = f"{'at most ' * member.clinic}{member.rows} training rows"
        facts = {"server": member.endpoint, "institution": rows, "custodian": policy}
        unsigned = "comes once" if member.clinic else "not signed yet"
        signed = "signed" if member.name in m.signatures else unsigned
        say(f"{member.role:<12} {member.name:<16} {facts[member.role]:<28} {signed}")
    say(f"model        {m.lower}, weights sha256 {m.lower.weights_sha256[:16]}")
    say(f"input        {m.lower.input}")
    say(f"classes      {', '.join(m.classes)} ({m.task})")
    check_complete(m)
    plan = of(m).plan
    say(plan.describe(m))
    say(f"key          {epochs.tolerance(m)}")
    if m.closing is not None:
        say(f"uploads      until {m.closing:%Y-%m-%d %H:%M %Z}; who has not come by then is left out")
    for warning in plan.warnings(m):
        warn(warning)
    say(f"hash         {m.hash.hex()}")
    who_verifies(m, say, warn)


def who_verifies(m: Manifest, say: Say, warn: Say) -> None:
    """Which custodians re-run the steps, and what the guard's answers tell."""
    from focal.ckks.scheme import Scheme
    from focal.protocols.common import refreshing

    verifiers = [c.name for c in m.custodians if c.verify == "lockstep"]
    if m.guard is None:
        warn("no custodian verifies (verify: off): the server is trusted to follow the protocol")
        return
    say(f"verification {', '.join(verifiers)} re-run(s) every step and answer(s) only for identical ciphertexts")
    bounds = refreshing.bounds(Scheme(m.ckks, "check"), len(m.custodians), of(m).plan.layout(m))
    bounds.check()
    say(f"guard        {m.guard.name} answers every refresh last: {bounds.describe(of(m).plan.refreshes(m))}")


def data_set(
    config: str | None, local: Path | None, table: Path | None, images: Path | None
) -> tuple[DatasetConfig, int]:
    """The data set of a configuration or of a local file, with another table and images where they are given; and the
    seed of its split."""
    seed, known = 0, dict[str, Any](kind="table")
    if config is not None:
        whole = read(RunConfig, configs.find(config))
        seed, known = whole.seed, whole.dataset.model_dump()
    elif local is not None:
        mine = read(LocalConfig, local)
        if mine.data is None:
            raise FocalError(f"{local}: names no data", hint="it is no institution's local file")
        seed, known = mine.seed, mine.data.model_dump()
    elif table is None or images is None:
        raise FocalError("nothing to look at", hint="focal data check TABLE IMAGES, --config NAME or --local FILE")
    given = {"table": table, "images": images}
    known.update({name: path for name, path in given.items() if path is not None})
    return DatasetConfig(**known), seed


def look_at(data: DatasetConfig, seed: int, cache: Path | None, progress: Progress | None = None) -> Examined:
    """Read the table of a data set, and all its images."""
    from focal.data import load
    from focal.data.examine import examine

    return examine(load(data, seed), cache, progress)


def check_party(
    m: Manifest, mine: LocalConfig, local: Path, wait: float, say: Say, progress: Progress | None = None
) -> None:
    """Test a party's keys, data, weights and link; ``local`` is where its local file lies,
    ``wait`` how long the server may take. ``progress(done, total)`` counts an institution's images."""
    check_signatures(m)
    identity = Identity.load(mine.keys)
    me = identity.entry(m)
    say(f"keys     '{me.name}' is {me.role} of '{m.name}'; all {len(m.members)} members have signed")
    if me.role == "institution":
        require("site", "focal check of an institution")
        from focal.segments.lower import build_lower

        if mine.data is None or mine.weights is None:
            hint = "name its own images and the lower segment's weights"
            raise FocalError(f"{local}: an institution needs 'data' and 'weights'", hint=hint)
        data = mine.data.model_copy(update={"classes": m.classes, "task": m.task})
        found = look_at(data, mine.seed, mine.cache or mine.state / "features", progress)
        train = found.declared(data.bad_images)
        if train != me.rows and not (me.clinic and 0 < train <= (me.rows or 0)):
            hint = "use the declared data, or agree on a new manifest"
            most = "at most " * me.clinic
            raise FocalError(f"{local}: {train} training rows, the manifest declares {most}{me.rows}", hint=hint)
        say(f"data     {len(found.table)} images, {train} training rows, as declared")
        for note in found.warnings():
            say(f"note     {note}")
        _, source = build_lower(m.lower, mine.weights)
        say(f"weights  {str(source).removeprefix('weights ')}, as pinned")
        if m.start is not None:
            from focal.segments.upper import released_digest

            if mine.start is None or released_digest(mine.start) != m.start:
                what = "'start' is not the released model that the manifest begins with"
                raise FocalError(f"{local}: {what}", hint="name that run's folder")
            say(f"start    {mine.start}, as pinned")
    if me.role == "server":
        say("link     the server is dialled; start it with: focal server")
        return
    from focal.net.link import Link

    link = Link(m, identity)
    link.phase = "keys"
    try:
        link.open(wait)
    finally:
        link.close()
    say(f"link     {m.server.endpoint} answers, keys are accepted on both sides")
