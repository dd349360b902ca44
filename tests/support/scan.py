"""The algebraic scan: of all ring elements that a run publishes, does a small combination exist
that would spell out a secret?

Two published elements made from one secret with one ``a`` add up to something without that secret's mask
(docs/security-notes.md: that is how every share was read off an honest run once). Such a combination is
small in some limb, on all coefficients at once, and by chance never. So, per family (all that depends on
one party's secret) and per prime::

    base       every published polynomial of the family, and its images under the automorphisms of rotations
               and of refreshes' maps, and their inverses
    products   base x every published ``a``
    search     one, two and three terms with coefficients -1, 0, 1, at most one of them a product
    masks      L(h0) + 2^k h1 of every refresh, in which the mask cancels (:func:`unmasked`)
    owners     every contribution to an input without the masks of its owners, who know them: -(s a + e),
               as all of them together see it

By first coefficients only: pairs are found by sorting the first one, and a hit must be small on eight.
SMALL leaves room for errors, 2^26 of 2^45; eight coefficients are small by chance once in 2^144.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from focal.ckks import codec, ring
from focal.ckks.scheme import DIGITS, LIMBS, Scheme
from focal.custody import inputs, keys, refresh
from focal.custody.inputs import Input, Words
from focal.manifest import Manifest
from focal.net import messages as msg
from focal.net.identity import Identity
from focal.net.store import Blobs
from focal.protocols import of
from focal.protocols.blind import uploads
from focal.protocols.common.audit import recorded
from focal.protocols.common.epochs import Epoch, Epochs, unspelled
from focal.protocols.common.inputs import KEY
from focal.protocols.interactive import plan as joint_plan
from focal.protocols.interactive.plan import opening_context
from focal.reading import read

LOOK = 8
FIRST = np.arange(1, LOOK + 1)
"""Which coefficients: not the constant one, which every automorphism leaves where it is."""
SMALL = 1 << 26
"""Errors, and noise of relinearisation, stay below 2^16; three terms of them too."""


OWNERS = " to its owners"
"""In the name of a contribution without its masks."""


@dataclass
class Published:
    """What one run shows: polynomials by family, and all public randomness."""

    scheme: Scheme
    rotations: Sequence[int]
    families: dict[str, list[tuple[str, Sequence[ring.Limb]]]] = field(default_factory=dict)
    """Family -> (name, limbs in evaluation form, in the order of ``scheme.extended``)."""
    public: dict[str, Sequence[ring.Limb]] = field(default_factory=dict)
    """Every ``a``, sum and c1 that anybody may multiply with."""
    requests: dict[str, list[list[ring.Limb]]] = field(default_factory=dict)
    """Plan item -> (c0, c1) that was to be refreshed."""
    maps: dict[str, refresh.Map] = field(default_factory=dict)
    """Plan item -> what its refresh applied."""
    rows: dict[tuple[str, str], Words] = field(default_factory=dict)
    """(institution, input) -> what it sent: integers of 128 bits."""
    masks: dict[tuple[str, str, str], Words] = field(default_factory=dict)
    """(custodian, institution, input) -> the mask that both know, of custodians whose keys for masks were kept."""

    def add(self, family: str, name: str, kind: codec.Kind, data: bytes) -> None:
        for i, polynomial in enumerate(codec.unpack(self.scheme, kind, data, name)):
            self.families.setdefault(family, []).append((f"{name}[{i}]", polynomial))

    def add_answer(self, family: str, item: str, h0: bytes, h1: bytes, how: refresh.Map) -> None:
        """A refresh share, and the map that its mask went through."""
        self.add(family, f"h0/{item}", codec.refresh_h0(how.request), h0)
        self.add(family, f"h1/{item}", codec.refresh_h1(how.limbs), h1)
        self.maps[item] = how

    def add_input(
        self, family: str, item: str, a: Sequence[ring.Limb], data: bytes, masks: Sequence[Words] = (), factor: int = 1
    ) -> None:
        """A contribution to an input, and what is left of it for those who know ``masks``, of all its owners;
        ``factor``: the input's."""
        self.public[f"a/{item}"] = a
        kind = codec.input_b(len(a))
        self.add(family, f"input/{item}", kind, data)
        if masks:
            ((_, seen),) = self.families[family][-1:]
            for words in masks:
                seen = ring.total([seen, self.evaluated(words, len(a), factor)], self.scheme.moduli[: len(a)])
            self.families[family].append((f"input/{item}{OWNERS}[0]", seen))

    def add_rows(self, family: str, item: str, data: bytes, limbs: int, factor: int = 1) -> None:
        """An institution's masked message, as the polynomial that goes into the input."""
        words = self.rows[family, item] = codec.unpack_masked(self.scheme, data, family)
        self.families.setdefault(family, []).append((f"rows/{item}[0]", self.evaluated(words, limbs, factor)))

    def evaluated(self, words: Words, limbs: int, factor: int) -> list[ring.Limb]:
        """Integers of 128 bits, times ``factor``, modulo the primes, as a polynomial in evaluation form."""
        out = []
        for q in self.scheme.moduli[:limbs]:
            low, high = (words[:, i] % np.uint64(q) for i in range(2))
            low, high = (ring.multiply(x, np.full(self.scheme.n, factor % q, np.uint64), q) for x in (low, high))
            whole = ring.add(low, ring.multiply(high, np.full(self.scheme.n, 2**64 % q, np.uint64), q), q)
            out.append(ring.ntt(whole, q, self.scheme.roots[q]))
        return out

    def add_keys(self, run_id: bytes) -> None:
        """The public randomness of the ceremony."""
        for label in ("relinearisation", *(f"rotation/{r}" for r in self.rotations)):
            for i, a in enumerate(keys.public_random(self.scheme, run_id, label, DIGITS)):
                self.public[f"a/{label}[{i}]"] = a


def of_run(parties: Path, manifest: Manifest, kept: Mapping[str, bytes] | None = None) -> Published:
    """Everything in the server's folder of a finished run, and what was sealed:
    the identities of the run lie beside it.

    ``kept``: private keys for masks of custodians, which are erased in the run;
    with all of them, also what the owners of inputs see.
    """
    board, blobs = recorded(manifest, parties / "server"), Blobs(parties / "server" / "blobs")
    bodies = [(r.sender, *unspelled(r.topic), r.body) for r in board]
    run_id = next(b.run_id for _, _, _, b in bodies if isinstance(b, msg.RunStart))
    epochs = Epochs(manifest, of(manifest).plan, bytes.fromhex(run_id))
    list(map(epochs.take, board))
    at = {epoch.suffix: epoch for epoch in epochs.in_force}
    scheme = Scheme(manifest.ckks, run_id)
    joint = next(b for _, _, _, b in bodies if isinstance(b, msg.JointKeys))
    out = Published(scheme, sorted(map(int, joint.rotations)))
    out.add_keys(bytes.fromhex(run_id))
    for i, polynomial in enumerate(codec.unpack(scheme, codec.SWITCHING_B, blobs.get(joint.relinearisation_h1), "h1")):
        out.public[f"h1[{i}]"] = polynomial
    kinds = {1: keys.first_round_kinds(out.rotations), 2: keys.SECOND_ROUND}
    layout = of(manifest).plan.layout(manifest)
    identities = {m.name: Identity.load(parties / m.name / "identity.json") for m in manifest.members}

    def unsealed(sender: str, reader: str, digest: str, context: bytes) -> bytes:
        return identities[reader].unseal(manifest.member(sender), blobs.get(digest), context)

    asked: set[str] = set()
    for sender, _, suffix, body in bodies:
        if isinstance(body, msg.KeyReveal) and body.round in kinds:
            for (name, kind), digest in zip(kinds[body.round], body.blobs, strict=True):
                out.add(sender, name, kind, blobs.get(digest))
        elif isinstance(body, msg.ShareCheck):
            count = len(manifest.custodians) + manifest.needed
            out.add(sender, "pieces", codec.check_values(count), blobs.get(body.blob))
        if suffix not in at:  # no share was given in it
            continue
        epoch = at[suffix]
        if isinstance(body, msg.RefreshRequest):
            for item, digest in zip(body.items, body.ciphertexts, strict=True):
                how, name = layout.refresh_map(item), item + suffix
                out.public[f"a/{name}"] = refresh.common_random(scheme, epoch.seed, item, digest, how.limbs)
                out.requests[name] = codec.unpack(scheme, codec.ciphertext(how.request), blobs.get(digest), "")
                if digest not in asked:  # in another epoch the same ciphertext may be asked for again
                    out.public[f"c1/{name}"] = out.requests[name][1]
                asked.add(digest)
        elif isinstance(body, msg.RefreshShares):
            for item, h0, h1 in zip(body.items, body.h0, body.h1, strict=True):
                out.add_answer(sender, item + suffix, blobs.get(h0), blobs.get(h1), layout.refresh_map(item))
        elif isinstance(body, msg.ReleaseShares):
            reader = manifest.institutions[0].name
            data = unsealed(sender, reader, body.sealed[reader], f"release/{reader}".encode() + epoch.seed)
            size = codec.size(scheme, codec.DECRYPTION)
            for i, item in enumerate(body.items):
                out.add(sender, item + suffix, codec.DECRYPTION, data[i * size : (i + 1) * size])
        elif isinstance(body, msg.OpeningShares):
            for item in body.items:
                reader = item.rpartition("/")[2]
                data = unsealed(sender, reader, body.sealed[reader], opening_context(item, epoch.seed))
                out.add(sender, item + suffix, codec.OPENING_SHARE, data)
    said = {(sender, topic, suffix): body for sender, topic, suffix, body in bodies}
    for epoch, round, wanted, chunks in rounds(manifest, said, epochs):
        for i, one in enumerate(wanted):
            named = one.item if one.item.endswith(epoch.suffix) else one.item + epoch.suffix
            for (name, label), digest in zip(one.owners, chunks[i], strict=True):
                out.add_rows(name, named, blobs.get(digest), one.limbs, one.factor)
                for custodian, private in (kept or {}).items():
                    public = said[name, KEY, epochs.at(KEY).suffix].public
                    key = inputs.pair_key(private, public, bytes.fromhex(run_id), name, custodian)
                    out.masks[custodian, name, named] = inputs.mask(key, label, one.item, scheme.n)
            for custodian in epoch.active:
                revealed: msg.InputReveal = said[custodian, f"{round}/reveal", epoch.suffix]
                lists = said[custodian, f"{round}/commit", epoch.suffix].lists
                a = inputs.public_random(scheme, epoch.seed, lists, one.item, one.limbs)
                masks = (
                    [out.masks[custodian, name, named] for name, _ in one.owners] if kept and custodian in kept else []
                )
                out.add_input(custodian, named, a, blobs.get(revealed.blobs[i]), masks, one.factor)
    return out


def rounds(
    manifest: Manifest, said: Mapping[tuple[str, str, str], Any], epochs: Epochs
) -> Iterator[tuple[Epoch, str, Sequence[Input], Sequence[Sequence[str]]]]:
    """(epoch, round, inputs, digests of their owners' masked messages) of every round of contributions that was
    ended."""
    if manifest.interactive is None:
        epoch = epochs.at(uploads.ROUND)
        lists = {m.name: said[m.name, "upload", epoch.suffix] for m in manifest.institutions}
        placed = uploads.inputs(of(manifest).plan.layout(manifest), lists)
        yield epoch, uploads.ROUND, [p.input for p in placed], [(p.chunk,) for p in placed]
        return
    for step in range(joint_plan.total(manifest)):
        for decided, what in (("present", "activations"), ("answered", "derivatives")):
            epoch = epochs.at(f"{decided}/{step}")
            owners = said[manifest.server.name, f"{decided}/{step}", epoch.suffix].owners
            headers = {name: said[name, f"{what}/{step}", epoch.suffix] for name in owners}
            round, _, wanted, _ = joint_plan.inputs(manifest, epoch, step, what, headers)
            yield epoch, round, wanted, [(header.chunk,) for header in headers.values()]


def under_one_mask(published: Published) -> list[str]:
    """Pairs of masked messages that differ by less than 2^64 in their first coefficients:
    their difference is one of rows, in the clear."""
    named = list(published.rows.items())
    high = np.array([words[:LOOK, 1] for _, words in named])
    apart = high[:, None] - high[None]  # modulo 2^64
    close = (np.minimum(apart, np.uint64(0) - apart) <= 1).all(axis=-1)
    return [
        f"{named[i][0]} and {named[j][0]} have one mask" for i, j in zip(*np.nonzero(np.triu(close, 1)), strict=True)
    ]


def captured(
    patch: Any, scheme_of: Callable[[], tuple[Scheme, Sequence[int], bytes]], run: Callable[[], object]
) -> Published:
    """What custodians of one process hand out while ``run`` runs: every share's contributions,
    refresh and decryption shares."""
    from focal.custody import release

    given: list[tuple[bytes, str, codec.Kind, bytes]] = []
    first, second, public = keys.SecretShare.first_round, keys.SecretShare.second_round, keys.SecretShare.public
    refreshed, smudged = refresh.share, release.smudged

    def who(limbs: Sequence[ring.Limb]) -> bytes:
        return limbs[0][:64].tobytes()

    def publics(self: keys.SecretShare) -> bytes:
        data = public(self)
        given.append((who(self.limbs), "public", codec.PUBLIC_B, data))
        return data

    def firsts(self: keys.SecretShare, rotations: Sequence[int], pool: Any) -> Iterator[bytes]:
        for (name, kind), data in zip(keys.first_round_kinds(rotations), first(self, rotations, pool), strict=True):
            given.append((who(self.limbs), name, kind, data))
            yield data

    def seconds(self: keys.SecretShare, h0: bytes, h1: bytes) -> list[bytes]:
        made = second(self, h0, h1)
        given.append((who(self.limbs), "relinearisation/b", codec.SWITCHING_B, made[0]))
        return made

    def shares(scheme: Scheme, secret: Sequence[ring.Limb], *rest: Any) -> tuple[bytes, bytes]:
        h0, h1 = refreshed(scheme, secret, *rest)
        limbs = next(n for n in range(1, LIMBS + 1) if codec.size(scheme, codec.refresh_h0(n)) == len(h0))
        given.append((who(secret), f"h0/{len(given)}", codec.refresh_h0(limbs), h0))
        limbs = next(n for n in range(1, LIMBS + 1) if codec.size(scheme, codec.refresh_h1(n)) == len(h1))
        given.append((who(secret), f"h1/{len(given)}", codec.refresh_h1(limbs), h1))
        return h0, h1

    def opened(scheme: Scheme, secret: Sequence[ring.Limb], *rest: Any) -> bytes:
        data = smudged(scheme, secret, *rest)
        given.append((who(secret), f"opening/{len(given)}", rest[-1], data))
        return data

    patch.setattr(keys.SecretShare, "first_round", firsts)
    patch.setattr(keys.SecretShare, "second_round", seconds)
    patch.setattr(keys.SecretShare, "public", publics)
    patch.setattr(refresh, "share", shares)
    patch.setattr(release, "smudged", opened)
    run()
    scheme, rotations, run_id = scheme_of()
    out = Published(scheme, list(rotations))
    out.add_keys(run_id)
    (out.public["a/public"],) = keys.public_random(scheme, run_id, "public", 1, extended=False)
    names = {secret: f"custodian-{i + 1}" for i, secret in enumerate(dict.fromkeys(secret for secret, *_ in given))}
    for secret, name, kind, data in given:
        out.add(names[secret], name, kind, data)
    return out


# --------------------------------------------------------------------------- the search


def coefficients(published: Published, limb: ring.Limb, q: int) -> np.ndarray:
    return ring.inverse_ntt(limb, q, published.scheme.roots[q])


def turned(values: np.ndarray, k: int, q: int) -> np.ndarray:
    """The first coefficients of a polynomial at X^k."""
    n = len(values)
    places = FIRST * pow(k, -1, 2 * n) % (2 * n)
    found = values[places % n]
    return np.where(places < n, found, (np.uint64(q) - found) % np.uint64(q))


def candidates(
    published: Published, family: str, q: int, products: bool
) -> tuple[list[str], np.ndarray, list[str], np.ndarray]:
    """Names and first coefficients, (m, LOOK) each, of the base and of the products modulo q."""
    place = published.scheme.extended.index(q)
    own = [(name, limbs[place]) for name, limbs in published.families[family] if len(limbs) > place]
    whole = {name: coefficients(published, limb, q) for name, limb in own}
    order = 2 * published.scheme.n
    rotations = [r for r in published.rotations if r != published.scheme.conjugation]
    powers = {
        pow(5, sign * r % published.scheme.slots, order): f"rot {sign * r}" for r in rotations for sign in (1, -1)
    }
    mapped = {k for how in published.maps.values() for k in how.automorphisms} - {order - 1}
    powers |= {pow(k, sign, order): f"map {k}^{sign}" for k in sorted(mapped) for sign in (1, -1)}
    turns = {name: k for k, name in powers.items()} | {"conjugate": order - 1}
    names = [*whole, *(f"{t} {name}" for name in whole for t in turns)]
    base = [*(v[FIRST] for v in whole.values()), *(turned(v, k, q) for v in whole.values() for k in turns.values())]
    names += [f"public {name}" for name, limbs in published.public.items() if len(limbs) > place]
    base += [
        coefficients(published, limbs[place], q)[FIRST] for limbs in published.public.values() if len(limbs) > place
    ]
    made, labels = [], []
    for name, limb in own if products else []:
        for other, limbs in published.public.items():
            if len(limbs) > place:
                made.append(coefficients(published, ring.multiply(limb, limbs[place], q), q)[FIRST])
                labels.append(f"{name} x {other}")
    empty = np.empty((0, LOOK), np.uint64)
    return names, np.array(base), labels, np.array(made) if made else empty


def is_small(values: np.ndarray, q: int, small: int = SMALL) -> np.ndarray:
    return (np.minimum(values, np.uint64(q) - values) < small).all(axis=-1)


def small_combinations(
    names: Sequence[str], base: np.ndarray, labels: Sequence[str], made: np.ndarray, q: int, singles: int
) -> Iterator[str]:
    """All small combinations: one term (of the first ``singles``), two of anything,
    three with at most one product or image.

    ``singles``: how many of ``base`` are polynomials themselves; combinations of three take two of these.
    """
    every, told = np.concatenate([base, made]), [*names, *labels]
    modulus = np.uint64(q)
    for i in np.flatnonzero(is_small(every, q)):
        yield f"{told[i]} is small modulo {q}"
    order = np.argsort(every[:, 0], kind="stable")
    first = every[order, 0].astype(np.int64)

    def near(wanted: np.ndarray, say: Callable[[int, int], str | None]) -> Iterator[str]:
        """Rows of ``every`` that are within SMALL of a row of ``wanted``."""
        centre = wanted[:, 0].astype(np.int64)
        for shift in (0, q, -q):
            low, high = np.searchsorted(first, centre + shift - SMALL), np.searchsorted(first, centre + shift + SMALL)
            for row in np.flatnonzero(high > low):
                for at in order[low[row] : high[row]]:
                    if is_small((every[at] + modulus - wanted[row]) % modulus, q) and (found := say(int(row), int(at))):
                        yield found

    for sign, tables in (("-", every), ("+", (modulus - every) % modulus)):
        yield from near(tables, lambda i, at, sign=sign: f"{told[at]} {sign} {told[i]}" if at > i else None)  # type: ignore[misc]
    pairs = np.array(list(itertools.combinations(range(singles), 2)), dtype=np.int64).reshape(-1, 2)
    for s, t in itertools.product((1, -1), repeat=2):
        x, y = (
            base[pairs[:, c]] if sign > 0 else (modulus - base[pairs[:, c]]) % modulus for c, sign in ((0, s), (1, t))
        )

        def say(row: int, at: int, s: int = s, t: int = t) -> str | None:
            i, j = pairs[row]
            return None if at in (i, j) else f"{told[at]} = {s:+d} {told[i]} {t:+d} {told[j]}"

        yield from near((x + y) % modulus, say)


def unmasked(published: Published) -> list[str]:
    """Refreshes in which L(h0) + 2^k h1 is small in some limb, where L(h0) has coefficients:
    that of a trace has none elsewhere.

    The mask cancels there, so it is L(s c1) - 2^k s a + small: nothing but ``a`` hides it.
    """
    found, scheme = [], published.scheme
    for family, elements in published.families.items():
        own = dict(elements)
        for item, how in published.maps.items():
            small = max(
                SMALL, 1 << how.shift + 8
            )  # errors, and what division by 2^k rounds away, are 2^k times as large here
            primes = [q for q in scheme.moduli[: how.request] if q > 8 * small]
            for q in primes if f"h0/{item}[0]" in own else ():
                i = scheme.moduli.index(q)
                mapped = how.linear(own[f"h0/{item}[0]"][i], q)
                factor = np.full(scheme.n, (1 << how.shift) % q, np.uint64)
                total = ring.add(mapped, ring.multiply(own[f"h1/{item}[0]"][i], factor, q), q)
                where = np.flatnonzero(coefficients(published, mapped, q))[:LOOK]
                if len(where) < LOOK or is_small(coefficients(published, total, q)[where], q, small):
                    found.append(f"{family}: L(h0) + 2^{how.shift} h1 of {item} is small modulo {q}")
    return found


def scan(
    published: Published,
    families: Iterable[str] | None = None,
    primes: Iterable[int] | None = None,
    products: bool = False,
) -> list[str]:
    """All small combinations, as sentences. ``products``: with every public ``a`` as well (slower)."""
    found = []
    for family in families or published.families:
        for q in primes or published.scheme.extended:
            names, base, labels, made = candidates(published, family, q, products)
            place = published.scheme.extended.index(q)
            singles = sum(len(limbs) > place for _, limbs in published.families[family])
            if singles:
                found += [
                    f"{family}: {text} (mod {q})" for text in small_combinations(names, base, labels, made, q, singles)
                ]
    return found


def counted(published: Published) -> Mapping[str, int]:
    return {family: len(elements) for family, elements in published.families.items()}


def read_run(folder: Path, kept: Mapping[str, bytes]) -> Published:
    """A finished local run's folder."""
    return of_run(folder / "parties", read(Manifest, folder / "manifest.json"), kept)
