"""A whole interactive run, attacked: by who keeps its bytes, by all institutions but one, by one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from focal.attacks import coalition as moments
from focal.attacks import features, joint, joint_uploads
from focal.attacks.bench import Bench
from focal.attacks.ciphertexts import Stage, own_chunks
from focal.attacks.features import Decoder
from focal.attacks.generator import Generator
from focal.attacks.joint import Coalition, JointRead
from focal.attacks.joint_uploads import What
from focal.attacks.scenarios.activations import public_decoder, shuffled
from focal.attacks.scenarios.registry import SIZE, Array, Found, Run, scenario
from focal.attacks.scenarios.uploads import CUSTODIANS, Fit, Pairs, decoded, labelled
from focal.attacks.scores import Trial, told_apart
from focal.attacks.threat import Threat
from focal.attacks.view import View
from focal.ckks.scheme import Scheme
from focal.errors import FocalError
from focal.heads.joint.layout import InteractiveLayout
from focal.protocols.interactive import plan
from focal.segments.projection import moment_count, pooled_moments

# --------------------------------------------------------------------------- the run


def _steps(bench: Bench, read: JointRead, name: str) -> list[NDArray[np.int64]]:
    """Rows of the table that an institution brought to each step."""
    from focal.training.split import Batches

    m, config = read.manifest, plan.schedule(read.manifest)
    config = config.model_copy(update={"batch": plan.batch(m, name)})
    rows = bench.train[name]
    batches = Batches(bench.table, rows, m.lower, config, name=name, seed=config.seed, memory=0)
    return [rows[batches.chosen(step)] for step in range(read.steps)]


@lru_cache(maxsize=2)
def _coalition(bench: Bench, names: tuple[str, ...]) -> Coalition:
    """What these institutions read, from their folders' views alone."""
    view = joint.folders(names, bench.joint_run)
    return joint.coalition(view, bench.table, {name: bench.train[name] for name in names}, bench.segment)


def _others(bench: Bench) -> tuple[str, ...]:
    return tuple(name for name in bench.names if name != bench.victim)


def _columns(bench: Bench, found: Coalition, step: int, rows: NDArray[np.int64]) -> Array:
    """(n, R) columns of the attacker's own ``rows``, by the lower segment that it had at a step."""
    from focal.segments.lower import preprocess

    own = next(iter(found.own.values()))
    assert own.segment is not None
    own.segment.load_vector(own.segments[step])
    with torch.inference_mode():
        if not any(p.requires_grad for p in own.segment.lower.parameters()):
            return own.segment.bottleneck(torch.from_numpy(bench.features(rows))).numpy()
        spec, out = own.segment.lower.spec, []
        for part in np.array_split(rows, max(1, len(rows) // 64)):
            out.append(
                own.segment(torch.stack([preprocess(bench.table.images.read(int(i)), spec) for i in part]).float())
            )
        return torch.cat(out).numpy()


# --------------------------------------------------------------------------- who keeps the bytes


Make = Callable[[Bench, int, int, What], tuple[Pairs, NDArray[np.int64]]]
"""To pairs, and the rows of the table that were seen."""


def _own_values(bench: Bench, most: int, features: int, what: What, rows: NDArray[np.int64]) -> Array:
    """Activations of the attacker's own rows by a projection of public ones, and derivatives under a head of zeros."""
    if what == "derivatives":
        return 1 / bench.classes - np.eye(bench.classes)[bench.labels(rows)]
    return bench.projection(bench.corpus.public[:most], features).apply(bench.features(rows))


def _from_run(party: str) -> Make:
    @lru_cache(maxsize=4)
    def make(bench: Bench, most: int, seed: int, what: What) -> tuple[Pairs, NDArray[np.int64]]:
        read, public = JointRead(View.of(bench.joint_run, party)), bench.corpus.public[:most]
        layout = read.layout
        made = joint_uploads.messages(
            read.scheme, layout, _own_values(bench, most, layout.features, what, public), what
        )
        chunks = own_chunks(read.scheme, made, joint_uploads.own_key(read), len(read.manifest.custodians))
        own = joint_uploads.signals(read.scheme, layout, chunks, _filled(layout, len(public)))
        at = read.table[bench.victim]
        rows = [range(at.start, at.start + read.rows(bench.victim, step)) for step in range(read.steps)]
        seen = joint_uploads.signals(read.scheme, layout, joint_uploads.of_run(read, bench.victim, what), rows)
        return _once(Pairs(own, public, seen), np.concatenate(_steps(bench, read, bench.victim)))

    return make


def _once(pairs: Pairs, rows: NDArray[np.int64]) -> tuple[Pairs, NDArray[np.int64]]:
    """Each row that was brought, the first time."""
    first = np.sort(np.unique(rows, return_index=True)[1])
    return pairs._replace(seen=pairs.seen[first]), rows[first]


def _filled(layout: InteractiveLayout, rows: int) -> list[range]:
    return [range(min(layout.rows, rows - start)) for start in range(0, rows, layout.rows)]


def _staged(bench: Bench, most: int, seed: int, what: What) -> tuple[Pairs, NDArray[np.int64]]:
    """The victim's rows in messages of joint steps, to custodians in one process, who all collude."""
    size, scheme = bench.joint_config.interactive.features, Scheme(bench.config.ckks, f"{seed:064x}")
    layout, out = InteractiveLayout(scheme.slots, size, bench.classes), []
    public, private = bench.corpus.public[:most], bench.corpus.private
    for rows in (public, private):
        made = joint_uploads.messages(scheme, layout, _own_values(bench, most, size, what, rows), what)
        stage = Stage.make(scheme, made, CUSTODIANS)
        filled = _filled(layout, len(rows))
        out.append(joint_uploads.signals(scheme, layout, stage.chunks, filled, stage.known_to(CUSTODIANS)))
    return Pairs(out[0], public, out[1]), private


def _family(key: str, title: str, threat: str, make: Make, assumes: str) -> None:
    """Two decoders and labels, as of the blind protocol's views."""

    def images(fit: Fit) -> Run:
        def run(bench: Bench, threat: Threat, seed: int) -> Found:
            pairs, rows = make(bench, threat.knows.public_images, seed, "activations")
            return Found(*decoded(bench, pairs, seed, fit), rows=rows)

        return run

    def labels(bench: Bench, threat: Threat, seed: int) -> Found:
        pairs, rows = make(bench, threat.knows.public_images, seed, "derivatives")
        return labelled(pairs, bench.labels(pairs.rows), bench.labels(rows), seed)

    name, teeth = f"focal-interactive.{key}", "focal-interactive.all-keys"
    scenario(name, title.format("decoder"), threat, assumes, teeth)(images(Decoder.fit))
    network = title.format("convolutional decoder")
    scenario(f"{name}-network", network, threat, assumes, f"{teeth}-network")(images(Generator.fit))
    scenario(f"{name}-labels", title.format("labels"), threat, f"derivatives; {assumes}", f"{teeth}-labels")(labels)


BYTES = "all bytes of the victim's rows in every joint step of a run; own pairs under the same joint key"
_family("server", "FOCAL, interactive: {} on ciphertexts", "passive-server", _from_run("server"), BYTES)
_family("custodian", "FOCAL, interactive: {} on what the guard may fetch", "custodian", _from_run("custodian-1"), BYTES)
_family(
    "all-keys",
    "control: all custodians of an interactive run, {}",
    "all-keys",
    _staged,
    f"joint messages to {CUSTODIANS} custodians in one process; all masks and key shares known",
)


# --------------------------------------------------------------------------- what other institutions read


class Batch(NamedTuple):
    """The others' rows of one step, and what was read of them."""

    step: int
    rows: NDArray[np.int64]
    """The victim's, of the table."""
    gradient: Array
    """(R, C) of all others together."""
    control: Array
    """(R, C) of one attacker's own rows, as large: it depends on nobody else."""


def _batches(bench: Bench, found: Coalition) -> list[Batch]:
    """Of all steps whose next head was opened."""
    own, rows, out = next(iter(found.own.values())), _steps(bench, found.read, bench.victim), []
    for step in range(found.read.steps - 1):
        mine = own.activations[step].T @ own.derivatives[step] * (found.rows_of_others(step) / len(rows[step]))
        out.append(Batch(step, rows[step], found.gradient(step), mine))
    return out


def _images_of_gradients(bench: Bench, threat: Threat, seed: int, names: tuple[str, ...]) -> Found:
    found, public = _coalition(bench, names), bench.corpus.public[: threat.knows.public_images]
    batches, trials, control = _batches(bench, found), list[Trial](), list[Trial]()
    rows = np.unique(np.concatenate([batch.rows for batch in batches]))
    every, decoder = plan.settings(found.read.manifest).average_every, None
    for batch in batches:
        if decoder is None or batch.step % every == 0:  # the lower segment moves little between averages
            columns = _columns(bench, found, batch.step, public)
            decoder = Decoder.fit(columns[:, :-1], bench.corpus.read(public, SIZE), seed)
        target = np.searchsorted(rows, np.unique(batch.rows))
        noise = np.random.default_rng([seed, 42, batch.step]).standard_normal(batch.gradient.shape)
        nothing = batch.gradient.mean(axis=0) + batch.gradient.std(axis=0) * noise
        for out, gradient in ((trials, batch.gradient), (control, nothing)):
            read = features.from_head(View("hospital", joint.as_batch(gradient), {}, {}), len(target))
            out.append(Trial(features.claims(decoder, read, False), target))
    return Found(trials, control, rows=rows)


def _members_of_gradients(bench: Bench, threat: Threat, seed: int, names: tuple[str, ...]) -> Found:
    """Candidates: the victim's rows of each step, and half of the public ones; the other half is what the attacker
    fits its filter on."""
    found, public = _coalition(bench, names), bench.corpus.public[: threat.knows.public_images]
    order = np.random.default_rng([seed, 43]).permutation(len(public))
    fit, outside = public[order[::2]], public[order[1::2]]
    scores: list[list[Array]] = [[], [], [], []]
    for batch in _batches(bench, found):
        head = found.heads[batch.step]

        def of(rows: NDArray[np.int64], step: int = batch.step, head: Array = head) -> Array:
            return joint.own_gradients(_columns(bench, found, step, rows), bench.labels(rows), head)

        base, theirs, strangers = of(fit), of(batch.rows), of(outside)
        for i, seen in enumerate((batch.gradient, batch.control)):
            n = found.rows_of_others(batch.step)
            scale = joint.matched(seen.ravel(), base, base, n)
            for j, candidates in enumerate((theirs, strangers)):
                score = joint.matched(seen.ravel(), candidates, base, n)
                scores[2 * i + j].append((score - scale.mean()) / scale.std())
    a, b, c, d = (np.concatenate(one) for one in scores)
    return Found(told=told_apart(a, b), control_told=told_apart(c, d))


def _rounds(bench: Bench, found: Coalition) -> list[tuple[int, Array, NDArray[np.int64], range]]:
    """(round, how the others' bottleneck moved (R - 1, dim), the victim's rows, steps) of every average."""
    read, rows = found.read, _steps(bench, found.read, bench.victim)
    every, dim = plan.settings(read.manifest).average_every, read.manifest.lower.dim
    out = []
    for round in range(1, -(-read.steps // every) + 1):
        steps = range((round - 1) * every, min(round * every, read.steps))
        matrix = joint.bottleneck_part(found.change(round), read.layout.features, dim)
        out.append((round, matrix, np.concatenate([rows[s] for s in steps]), steps))
    return out


def _images_of_averages(bench: Bench, threat: Threat, seed: int, names: tuple[str, ...]) -> Found:
    found, most = _coalition(bench, names), threat.knows.public_images
    raw = bench.features(bench.corpus.public[:most])
    mean, spread = raw.mean(axis=0), float(np.linalg.norm(raw - raw.mean(axis=0), axis=1).mean())
    decoder, rounds = public_decoder(bench, most, seed), _rounds(bench, found)
    rows = np.unique(np.concatenate([own for _, _, own, _ in rounds]))
    trials, control = list[Trial](), list[Trial]()
    for _, matrix, own, _ in rounds:
        target = np.searchsorted(rows, np.unique(own))
        for out, moved in ((trials, matrix), (control, shuffled(matrix, seed))):
            read = joint.directions(moved, mean, spread, len(target))
            out.append(Trial(features.claims(decoder, read, False), target))
    return Found(trials, control, rows=rows)


def _members_of_averages(bench: Bench, threat: Threat, seed: int, names: tuple[str, ...]) -> Found:
    """By how far the bottleneck moved along a candidate's own gradient, dX f', under the heads of the round."""
    found, public = _coalition(bench, names), bench.corpus.public[: threat.knows.public_images]
    centre, scores = bench.features(public).mean(axis=0), ([], [], [], [])  # type: tuple[Array, tuple[list, ...]]
    for _, matrix, own, steps in _rounds(bench, found):
        heads = [found.heads[s] for s in steps]

        def of(rows: NDArray[np.int64], moved: Array, step: int = steps.start, heads: Sequence[Array] = heads) -> Array:
            x, f = _columns(bench, found, step, rows), bench.features(rows) - centre
            dx = np.zeros((len(rows), x.shape[1] - 1))
            for w in heads:
                dx += joint.derivatives(x @ w, bench.labels(rows)) @ w[:-1].T
            lengths = np.linalg.norm(dx, axis=1) * np.linalg.norm(f, axis=1)
            return -np.einsum("nr,rd,nd->n", dx, moved, f) / np.maximum(lengths, 1e-12)

        for i, moved in enumerate((matrix, shuffled(matrix, seed))):
            base = of(public, moved)
            for j, rows in enumerate((own, public)):
                scores[2 * i + j].append((of(rows, moved) - base.mean()) / base.std())
    a, b, c, d = (np.concatenate(one) for one in scores)
    return Found(told=told_apart(a, b), control_told=told_apart(c, d))


Attack = Callable[[Bench, Threat, int, tuple[str, ...]], Found]


def _peers(name: str, title: str, threat: str, attack: Attack, teeth: str, assumes: str) -> None:
    @scenario(f"focal-interactive.{name}", f"FOCAL, interactive: {title}", threat, assumes, teeth)
    def run(bench: Bench, threat: Threat, seed: int) -> Found:
        return attack(bench, threat, seed, _others(bench)[-1:] if threat.name == "hospital" else _others(bench))


READ = "a real run's folders: heads read off the coalition's own openings, its own part recomputed and subtracted"
CANDIDATES = "; candidates' features and labels known, those of each step against public ones"
for _key, _who, _threat in (("coalition", "all others'", "all-but-one"), ("peer", "one other's", "hospital")):
    _sum = "the last institution's summed head gradient" if _key == "coalition" else "two others' summed head gradient"
    _peers(_key, f"{_sum}, {_who} view", _threat, _images_of_gradients, "head-1.gradient", READ)
    _peers(f"{_key}-membership", f"membership from {_sum}", _threat, _members_of_gradients,
           "memorising-head.membership", READ + CANDIDATES)  # fmt: skip
_peers(
    "averages", "the last institution's segment, consecutive averages less one's own", "all-but-one",
    _images_of_averages, "head-1.gradient",
    "averages of four steps, opened by the coalition; directions in which the bottleneck moved, decoded",
)  # fmt: skip
_peers(
    "averages-membership", "membership from consecutive averages", "all-but-one", _members_of_averages,
    "memorising-head.membership", "how far the bottleneck moved along a candidate's own gradient" + CANDIDATES,
)  # fmt: skip


@scenario(
    "focal-interactive.coalition-moments",
    "FOCAL, interactive: pooled moments as opened in the run, all other institutions' rows known",
    "all-but-one",
    "as focal-blind.coalition-moments, from the masked vectors of a real run",
    "focal-blind.coalition-moments",
)
def _moments(bench: Bench, threat: Threat, seed: int) -> Found:
    read = JointRead(joint.folders(_others(bench)[-1:], bench.joint_run))
    m, dim = read.manifest, read.manifest.lower.dim
    if m.projection.kind != "whiten" or m.start is not None:
        raise FocalError("this run pooled no moments", hint="attack one without 'start', and with kind whiten")
    opened = read.total("moments", read.names[-1])[: moment_count(dim)]
    pooled = pooled_moments(opened, dim, m.projection.bound, m.founder_rows)
    own = moments.moments_of(bench.features(np.concatenate([bench.train[name] for name in _others(bench)])))
    last = moments.last_one(pooled, own)
    private, public = (bench.features(rows) for rows in (bench.corpus.private, bench.corpus.public))
    return Found(
        told=told_apart(moments.leverage(last, private), moments.leverage(last, public)),
        control_told=told_apart(moments.leverage(own, private), moments.leverage(own, public)),
    )
