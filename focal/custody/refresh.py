"""Collective refresh: N custodians turn a ciphertext with few limbs into a fresh one, and nobody sees the message.

On its way the message may pass a public map (:class:`Map`): a division by 2^k with rounding, then L, a
sum of automorphisms (the real part of a slot, a sum over rows), exact on integers, for which a server
would need key switches and limbs::

    server:     (c0, c1) with 3 limbs, or 4                a = SHAKE-256(run id, plan item, digest of (c0, c1))
    custodian:  h0 = s_i c1 - M_i      h1 = -s_i a + e + L(M_i / 2^k)      M_i uniform, as wide as :class:`Guard` says
    guard, last:  w = c0 + sum of the others' h0 + s_V c1     refused unless |w| < T in every coefficient;
                                                              then its own h0, h1
    anyone:     v = c0 + sum h0 = m - sum M_i over the integers;   new c0 = L(v / 2^k) + sum h1,    new c1 = a

so the new ciphertext has the message L(m / 2^k) up to a rounding a party. ``a`` must be fresh and nobody's
choice: with a repeated ``a`` the masks cancel between two refreshes. Hence it is derived here from what is
refreshed, and the ledger admits one share per plan item and per digest. The map is no party's choice either: it
follows from the kind of the plan item.

**Who could have made a share without the secret.** h1 is a ring-LWE sample under s_i with an ``a`` of its own,
plus a function of M_i: e stands outside L (L(e) would lie in a subring), so it is pseudo-random whatever M_i is.
Given that, h0 is all that shows s_i's part of the message. With the guard V honest,
h0_V = w - M_V - (what the others sent), |w| < T was checked, and M_V is uniform over 2^b: so h0_V is within N T / 2^b,
statistically, of a value made without s_V, *whatever c1 is and whoever made it* (:attr:`Guard.leak`). With V dishonest,
another custodian's M_i hides an honest phase to 2^-42 a coefficient (:attr:`Guard.hiding`), but nothing hides s_i c1
for a c1 of somebody's choice: then everybody else must be honest (SECURITY.md).

Both bounds ask for the same room above the message, 42 + 30 bits and the sums: a message that is carried larger needs
one limb more. What a request has is its map's (:attr:`Map.request`, :attr:`Map.phase_bits`)::

                      limbs     honest phase     others' masks     T (3 custodians)     guard's mask     leak an item
    blind heads       3         2^56             2^98              2^98                 2^148            2^-36
    a joint head      4         2^104            2^146             2^146                2^193            2^-33

Without a guard all masks are as wide as their sum allows. A custodian may add a message of its own (``added``), noise
on a head: it goes into h1, which is recorded, so whoever recomputes the refresh from the recorded shares gets the same
limbs; and M_i hides it as it hides the rest.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from focal import framing
from focal.ckks import codec, integers, ring, sampling
from focal.ckks.ring import Limb
from focal.ckks.scheme import LIMBS, REFRESH_LIMBS, Scheme
from focal.errors import FocalError

PHASE_BITS = 11
"""Honest messages (16 logits or 16 weights of a blind step) stay below 2^11 in a slot,
so their coefficients below 2^11 scale."""
HIDING = 42
"""Bits by which another custodian's mask is wider than an honest phase: 2^-42 a coefficient."""
LEAK = 30
"""An answer of the guard may lie 2^-30, at most, from what is made without its share (statistical distance over
all N coefficients)."""

EXPANDED = 64
"""How many of the last ``a`` are kept, 0.8 MB each: a party needs those of a batch for its shares, and again for the
sums of all."""


@dataclass(frozen=True)
class Map:
    """What a refresh does to the message m on its way: L(round(m / 2^shift)), L the product of 1 + (X -> X^k)
    over ``automorphisms``.

    By default nothing. It must be a function of the plan item's kind alone:
    whoever chose it could read sums of a message's slots.
    """

    limbs: int = LIMBS
    """Of the refreshed ciphertext."""
    shift: int = 0
    automorphisms: tuple[int, ...] = ()
    """Odd exponents k: 2N - 1 adds the complex conjugate to every slot, 5^r what stands r slots further on."""
    request: int = REFRESH_LIMBS
    """Limbs of the ciphertext that is refreshed."""
    phase_bits: int = PHASE_BITS
    """Honest messages, before the map, stay below 2^phase_bits in a slot."""

    def linear(self, limb: Limb, q: int) -> Limb:
        """L of a polynomial in evaluation form."""
        for k in self.automorphisms:
            limb = ring.add(limb, limb[ring.automorphism(len(limb), k)], q)
        return limb


IDENTITY = Map()


@dataclass(frozen=True)
class Guard:
    """Widths of masks and the bound T of what the guard accepts, for ``custodians`` custodians of a ring ``n``
    with these first moduli.

    Integers, so that everybody has the same.
    """

    n: int
    moduli: tuple[int, ...]
    """Those of a request: q_0, q_1, q_2, ..."""
    scale_bits: int
    custodians: int
    phase_bits: int = PHASE_BITS

    def check(self) -> None:
        """Raise :class:`FocalError` when the moduli are too small for both hiding bounds at once."""
        if self.leak > -LEAK or 8 * self.n * self.limit >= self.q:
            raise FocalError(
                f"refresh: with {self.custodians} custodians and moduli of {math.log2(self.q):.0f} bits the guard's "
                f"answers would leak 2^{self.leak:.1f} an item; 2^-{LEAK} is the bound",
                hint="use ckks.first_bits 60 and scale_bits 45, the defaults, or fewer custodians",
            )

    @property
    def q(self) -> int:
        return math.prod(self.moduli)

    @property
    def phase(self) -> int:
        """Largest coefficient of an honest request."""
        return 1 << self.scale_bits + self.phase_bits

    @property
    def others_bits(self) -> int:
        """The mask of each custodian but the guard is uniform over so many bits."""
        return self.scale_bits + self.phase_bits + HIDING

    @property
    def guard_bits(self) -> int:
        """The guard's: less than half of the request's modulus, so that the sum of all masks never wraps."""
        return round(math.log2(self.q)) - 2

    @property
    def alone_bits(self) -> int:
        """Everybody's, where no custodian guards."""
        return self.guard_bits - (self.custodians - 1).bit_length()

    @property
    def limit(self) -> int:
        """T: the others' masks can never reach it, so an honest request is never refused."""
        return (self.custodians - 1) * (1 << self.others_bits - 1) + 16 * self.phase

    @property
    def leak(self) -> float:
        """log2 of the statistical distance of the guard's answer to one item from what is made without its share:
        N T / 2^bits."""
        return math.log2(self.n) + math.log2(self.limit) - self.guard_bits

    @property
    def hiding(self) -> float:
        """log2 of the distance, per coefficient, within which another custodian's mask alone
        hides an honest request."""
        return math.log2(self.phase) - self.others_bits

    def facts(self, items: int) -> dict[str, float]:
        """The bounds as a summary has them, exponents of two; ``items``: refreshes of the run."""
        return {
            "items": items,
            "phase_bits": math.log2(self.phase),
            "others_mask_bits": self.others_bits,
            "limit_bits": math.log2(self.limit),
            "mask_bits": self.guard_bits,
            "hiding_bits": self.hiding,
            "leak_bits_per_item": self.leak,
            "leak_bits": self.leak + math.log2(items),
            "answers_bits": math.log2(items + 1),
        }

    def describe(self, items: int) -> str:
        """The bounds in a line that a person can check; ``items``: refreshes of the run."""
        return (
            f"the others' masks (2^{self.others_bits}) hide a request to 2^{self.hiding:.0f} a coefficient; "
            f"accepted below T = 2^{math.log2(self.limit):.1f}; its own mask (2^{self.guard_bits}) hides "
            f"what passed to 2^{self.leak:.1f} an item, 2^{self.leak + math.log2(items):.1f} over {items} items; "
            f"that it answers tells {math.log2(items + 1):.1f} bits at most"
        )


def guard(scheme: Scheme, custodians: int, how: Map = IDENTITY) -> Guard:
    """The bounds of a run with these parameters, for refreshes by the map ``how``."""
    return Guard(scheme.n, scheme.moduli[: how.request], scheme.params.scale_bits, custodians, how.phase_bits)


def common_random(scheme: Scheme, run_id: bytes, item: str, digest: str, limbs: int = LIMBS) -> list[Limb]:
    """``a``, the first ``limbs`` limbs, for the refresh of the ciphertext ``digest`` under plan item ``item``."""
    seed = framing.framed(b"focal/refresh/v2", run_id, item.encode(), bytes.fromhex(digest))
    return _expanded(seed, scheme.moduli[:limbs], scheme.n)


@functools.lru_cache(maxsize=EXPANDED)
def _expanded(seed: bytes, moduli: tuple[int, ...], n: int) -> list[Limb]:
    # a party needs the same limbs for its share and for the sum of all; nobody writes to them
    return ring.expand(seed, moduli, n)


def lowered(scheme: Scheme, ciphertext: Any, how: Map) -> Any:
    """The same message with no more limbs than this map's request has."""
    return scheme.evaluator.drop(ciphertext, how.request)


def request(scheme: Scheme, ciphertext: Any, how: Map = IDENTITY) -> bytes:
    """Canonical bytes of a ciphertext that is to be refreshed by ``how``;
    it must have exactly that map's limbs, at scale degree 1."""
    ev = scheme.evaluator
    if (found := (ev.count(ciphertext), ev.degree(ciphertext))) != (how.request, 1):
        raise ValueError(
            f"this refresh takes exactly {how.request} limbs at scale degree 1, not {found[0]} at {found[1]}"
        )
    return codec.pack(scheme, codec.ciphertext(how.request), ev.limbs(ciphertext))


def kind(how: Map) -> codec.Kind:
    """A share (h0, h1) for ``how``, as one blob: nobody outside this module need know what is in it."""
    return codec.refresh_share(how.request, how.limbs)


def share(
    scheme: Scheme,
    secret: Sequence[Limb],
    c1: Sequence[Limb],
    a: Sequence[Limb],
    bits: int,
    how: Map = IDENTITY,
    added: NDArray[np.float64] | None = None,
) -> bytes:
    """One custodian's (h0, h1) as canonical bytes under its share ``secret`` (limbs),
    with a mask uniform over ``bits`` bits.

    ``how``: the map of the plan item; ``added``: slots (S,) that it adds to the refreshed message.
    Call it through the ledger only: each share is made once.
    """
    if len(c1) != how.request:
        raise ValueError(f"this refresh takes exactly {how.request} limbs, not {len(c1)}")
    words, error, offset = sampling.uniform(scheme.n, bits), sampling.errors(scheme.n), -(1 << bits - 1)
    low = sampling.low_words(words, offset)
    ev = scheme.evaluator
    message = ev.plain_limbs(ev.encode(added, how.limbs)) if added is not None else None
    h0, h1 = [], []
    for i, (q, s) in enumerate(zip(scheme.moduli[: max(how.limbs, how.request)], secret, strict=False)):
        root, mask = scheme.roots[q], sampling.residues(words, offset, q)
        if i < how.request:
            h0.append(ring.subtract(ring.multiply(s, c1[i], q), ring.ntt(mask, q, root), q))
        if i < how.limbs:
            upper = how.linear(ring.ntt(integers.divided(mask, low, how.shift, q), q, root), q)
            upper = ring.add(upper, ring.ntt_signed(error, q, root), q)
            upper = ring.subtract(upper, ring.multiply(s, a[i], q), q)
            h1.append(upper if message is None else ring.add(upper, message[i], q))
    return codec.pack(scheme, kind(how), [h0, h1])


def small_enough(
    scheme: Scheme,
    bounds: Guard,
    secret: Sequence[Limb],
    asked: bytes,
    others: Sequence[tuple[str, bytes]],
    how: Map = IDENTITY,
) -> bool:
    """The guard's question: is |c0 + sum of the others' h0 + s_V c1| < T in every coefficient?
    ``others``: (name, share) of each.

    Whoever makes that sum small with a c1 that would show s_V knows s_V c1 already, to within T. Exact:
    the mixed-radix digits of w + T - 1 (:mod:`focal.ckks.integers`) are compared with those of 2 T - 1.

    Raises :class:`focal.errors.Refused` naming the custodian whose share, either half of it, is malformed.
    """
    primes = bounds.moduli
    c0, c1 = codec.unpack(scheme, codec.ciphertext(len(primes)), asked, "refresh request")
    total = ring.total([c0, *(codec.unpack(scheme, kind(how), data, name)[0] for name, data in others)], primes)
    seen = [ring.add(t, ring.multiply(s, x, q), q) for t, s, x, q in zip(total, secret, c1, primes, strict=False)]
    values = [ring.inverse_ntt(limb, q, scheme.roots[q]) for limb, q in zip(seen, primes, strict=True)]
    return integers.within(values, primes, bounds.limit)


def combine(
    scheme: Scheme, asked: bytes, a: Sequence[Limb], shares: Sequence[tuple[str, bytes]], how: Map = IDENTITY
) -> Any:
    """The refreshed ciphertext from the request's bytes and every custodian's (name, share). Deterministic.

    Raises :class:`focal.errors.Refused` naming the custodian whose share is malformed.
    """
    primes, out = scheme.moduli[: how.request], scheme.moduli[: how.limbs]
    c0, _ = codec.unpack(scheme, codec.ciphertext(how.request), asked, "refresh request")
    h0, h1 = zip(*(codec.unpack(scheme, kind(how), data, name) for name, data in shares), strict=True)
    masked = [
        ring.inverse_ntt(limb, q, scheme.roots[q])
        for limb, q in zip(ring.total([c0, *h0], primes), primes, strict=True)
    ]
    value = integers.Centred(masked, primes)
    small = [value.divided(how.shift, q) for q in out]
    lifted = [how.linear(ring.ntt(limb, q, scheme.roots[q]), q) for limb, q in zip(small, out, strict=True)]
    return scheme.evaluator.load([ring.total([lifted, *h1], out), list(a[: how.limbs])])


def together(
    scheme: Scheme,
    run_id: bytes,
    secrets: Mapping[str, Sequence[Limb]],
    item: str,
    asked: bytes,
    how: Map = IDENTITY,
    added: Sequence[NDArray[np.float64]] | None = None,
) -> tuple[Any, dict[str, int]]:
    """One refresh by custodians of one process, the first of them the guard:
    the ciphertext, and the bytes of everybody's share.

    For rehearsals and encrypted baselines; the roles do the same over the wire.
    ``added``: slots of each custodian's own message.
    """
    bounds, (first, *names) = guard(scheme, len(secrets), how), secrets
    a = common_random(scheme, run_id, item, codec.digest(asked), how.limbs)
    c1 = codec.unpack(scheme, codec.ciphertext(how.request), asked, "refresh request")[1]
    own = dict(zip(secrets, added, strict=True)) if added is not None else {}
    made = {n: share(scheme, secrets[n], c1, a, bounds.others_bits, how, own.get(n)) for n in names}
    if not small_enough(scheme, bounds, secrets[first], asked, list(made.items()), how):
        raise FocalError(
            f"'{item}': the guard refuses what is to be refreshed: values beyond what a training step gives"
        )
    made[first] = share(scheme, secrets[first], c1, a, bounds.guard_bits, how, own.get(first))
    return combine(scheme, asked, a, [(n, made[n]) for n in secrets], how), {n: len(made[n]) for n in secrets}
