"""A collective refresh as its parties speak of it: topics, answers, and the sum that everybody computes.

What is refreshed together is a batch, ``refresh/STEP/KIND``. One of more than :data:`MOST` items is asked for in parts,
``refresh/STEP/KIND/1``, ``/2``, ..., so that nobody waits for all of it::

    server       ask 1   ask 2   combine 1   ask 3   combine 2   ...
    custodians           answer 1   answer 2    answer 3   ...           the guard: each part after all others'

A part is to custodians what a batch is: exactly these items in the plan's order, one record, one decision of the guard.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.custody import refresh
from focal.errors import ProtocolError
from focal.heads.moves import HeadLayout
from focal.net import messages as msg
from focal.protocols.common.voice import Fetch, Voice

MOST = 64
"""Items that are under way at a time: a batch of more is asked for in parts."""
PART = 32
"""Items of a part. The server asks for one while another is answered: both are :data:`MOST` together."""
AGAIN = "refresh/again/release"
"""Topic of the one more refresh that weights pass before their release is asked for in another epoch."""


def again(count: int) -> tuple[str, ...]:
    """The plan items of that batch."""
    return tuple(f"train/again/release/{i}/-/-" for i in range(count))


def parts(items: Sequence[str]) -> list[tuple[str, slice]]:
    """(topic, where in ``items``) of every part of a batch, in order; of one that needs none, the batch's."""
    _, step, kind, *_ = items[0].split("/")
    topic, count = f"refresh/{step}/{kind}", len(items)
    if count <= MOST:
        return [(topic, slice(0, count))]
    return [(f"{topic}/{n}", slice(i, min(i + PART, count))) for n, i in enumerate(range(0, count, PART), 1)]


def taken(ciphertexts: list[Any], place: slice) -> list[Any]:
    """The ciphertexts of a part, which the list of the whole batch holds no longer: of a million rows those that were
    asked for would be 0.8 GB beside the 1.6 GB that come back."""
    own = ciphertexts[place]
    ciphertexts[place] = [None] * len(own)
    return own


def bounds(scheme: Scheme, custodians: int, layout: HeadLayout) -> refresh.Guard:
    """Widths of masks and the guard's bound, as every refresh of a run has them: those of its weights."""
    return refresh.guard(scheme, custodians, layout.refresh_map("train/0/weights/-/-/-"))


def requests(
    scheme: Scheme, items: list[str], ciphertexts: list[Any], pool: ThreadPoolExecutor, layout: HeadLayout
) -> list[bytes]:
    """Canonical bytes of the ciphertexts of a batch that is to be refreshed."""
    return list(pool.map(lambda item, ct: refresh.request(scheme, ct, layout.refresh_map(item)), items, ciphertexts))


def once_more(voice: Voice, weights: list[Any], scheme: Scheme, layout: HeadLayout) -> list[Any]:
    """Weights after one more refresh, as a release that is asked for again takes them."""
    items = again(len(weights))
    lowered = [refresh.lowered(scheme, w, layout.refresh_map(i)) for i, w in zip(items, weights, strict=True)]
    return voice.refresh(list(items), lowered)


def digests(scheme: Scheme, ciphertexts: list[Any]) -> tuple[str, ...]:
    """Digests of ciphertexts, as they stand."""
    shown = map(scheme.evaluator.limbs, ciphertexts)
    return tuple(codec.digest(codec.pack(scheme, codec.ciphertext(len(p[0])), p)) for p in shown)


def check_answers(asked: msg.RefreshRequest, answers: dict[str, msg.RefreshShares]) -> None:
    """Raise unless every custodian answered exactly what was asked."""
    for name, answer in answers.items():
        same = (answer.items, answer.ciphertexts) == (asked.items, asked.ciphertexts)
        if not same or len(answer.shares) != len(asked.items):
            raise ProtocolError(f"'{name}' answered another refresh than was asked for")


def expand_ahead(
    scheme: Scheme,
    seed: bytes,
    items: Sequence[str],
    digests: Sequence[str],
    pool: ThreadPoolExecutor,
    layout: HeadLayout,
) -> None:
    """Have the pool derive the first ``a`` of a batch (:func:`focal.custody.refresh.common_random`)
    while answers are on their way."""
    for item, digest in list(zip(items, digests, strict=True))[: refresh.EXPANDED]:
        pool.submit(refresh.common_random, scheme, seed, item, digest, layout.refresh_map(item).limbs)


def combine(
    scheme: Scheme,
    seed: bytes,
    asked: msg.RefreshRequest,
    answers: dict[str, msg.RefreshShares],
    fetch: Fetch,
    pool: ThreadPoolExecutor,
    layout: HeadLayout,
) -> list[Any]:
    """Refreshed ciphertexts from a request and every custodian's answer:
    what the server, a verifier and the release check compute.

    Raises :class:`focal.errors.ProtocolError` naming the custodian whose answer is not to what was asked.
    """
    check_answers(asked, answers)

    def one(i: int) -> Any:
        data, how = fetch(asked.ciphertexts[i]), layout.refresh_map(asked.items[i])
        a = refresh.common_random(scheme, seed, asked.items[i], asked.ciphertexts[i], how.limbs)
        return refresh.combine(scheme, data, a, [(name, fetch(s.shares[i])) for name, s in answers.items()], how)

    return list(pool.map(one, range(len(asked.items))))
