"""Mutation fuzzing of everything that decodes foreign bytes; `make fuzz` runs it for long, test_fuzz.py 100,000 cases.

::

    valid samples of every record, frame and blob  --flip, cut, splice, repeat, overwrite-->  decoder
                                                   -->  refused, or accepted with one spelling

A decoder may raise ProtocolError and nothing else. What it accepts must encode back to the same bytes (so that no two
byte strings mean one thing), and a signed or sealed message must never be accepted once a single bit of it has changed.

    python tests/support/fuzz.py --cases 2000000 --seed 7
"""

from __future__ import annotations

import argparse
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from drawn import BODIES, RECORDS, REPLIES, REQUESTS, strategy
from hypothesis.errors import NonInteractiveExampleWarning
from parties import SCOPE, identities, manifest_of

from focal.ckks import codec, ring
from focal.ckks.scheme import Scheme
from focal.config import CkksConfig
from focal.errors import ProtocolError
from focal.net import frames
from focal.net import messages as msg
from focal.net.encoding import decode, encode
from focal.net.identity import open_record
from focal.segments.projection import Projection


@dataclass(frozen=True)
class Target:
    """A decoder with samples that it accepts. ``accept`` returns the bytes that its result encodes to."""

    name: str
    samples: list[bytes]
    accept: Callable[[bytes], bytes]
    authentic: bool = False
    """Signed or sealed: no changed byte string may be accepted at all."""
    every: int = 1
    """One of how many rounds tries it: slow decoders get fewer cases."""


class WrongAcceptance(AssertionError):
    """A decoder took bytes that it must refuse."""


def targets() -> list[Target]:
    """Every decoder of bytes that come from another party."""
    people = identities()
    manifest = manifest_of(people)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonInteractiveExampleWarning)
        bodies = [strategy(b).example() for b in BODIES]
        requests = [encode(strategy(r).example()) for r in REQUESTS]
        replies = [encode(strategy(r).example()) for r in REPLIES]
        records = [encode(RECORDS.example()) for _ in range(10)]
    signed = [people["north"].sign_record(SCOPE, "nonce/commit", body) for body in bodies]
    north, south = people["north"], people["south"]
    sealed = [north.seal(manifest.member("south"), b"share" * n, b"context") for n in (1, 100)]
    scheme = Scheme(CkksConfig(), SCOPE)
    limbs = [ring.expand(b"fuzz", scheme.moduli[:1], scheme.n)]
    share, given = codec.pack(scheme, codec.DECRYPTION, limbs), codec.input_b(1)
    masked = codec.pack_masked(scheme, np.stack(ring.expand(b"fuzz", scheme.moduli[:2], scheme.n), axis=1))
    rows = np.eye(3, 5, dtype=np.float32)
    projection = Projection("whiten", rows, np.zeros(3, np.float32), 4.0, 4, (0.5).hex()).to_bytes()

    def opened(data: bytes) -> bytes:
        open_record(manifest, data)
        return data

    def unsealed(data: bytes) -> bytes:
        south.unseal(manifest.member("north"), data, b"context")
        return data

    return [
        Target("request frame", requests, lambda d: encode(decode(frames.REQUEST, d))),
        Target("reply frame", replies, lambda d: encode(decode(frames.REPLY, d))),
        Target("record", records, lambda d: encode(decode(msg.Record, d))),
        Target("signed record", signed, opened, authentic=True),
        Target("sealed message", sealed, unsealed, authentic=True),
        Target("projection", [projection], lambda d: Projection.from_bytes(d).to_bytes()),
        Target(
            "ciphertext blob",
            [share],
            lambda d: codec.pack(scheme, codec.DECRYPTION, codec.unpack(scheme, codec.DECRYPTION, d, "fuzz")),
            every=20,
        ),
        Target(
            "masked message",
            [masked],
            lambda d: codec.pack_masked(scheme, codec.unpack_masked(scheme, d, "fuzz")),
            every=20,
        ),
        Target(
            "contribution to an input",
            [codec.pack(scheme, given, limbs)],
            lambda d: codec.pack(scheme, given, codec.unpack(scheme, given, d, "fuzz")),
            every=20,
        ),
    ]


def mutate(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """One to three random edits. Headers and tails are hit as often as bulk, whatever the length."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        size = len(out)
        at = rng.choice((rng.randrange(size + 1), rng.randrange(min(size, 160) + 1), max(0, size - rng.randrange(40))))
        match rng.randrange(8):
            case 0 | 1 if size:
                out[min(at, size - 1)] ^= 1 << rng.randrange(8)
            case 2 if size:
                out[min(at, size - 1)] = rng.choice((0, 1, 0x7F, 0x80, 0xC0, 0xC1, 0xFF, 0xDD, 0xDF, 0xC6))
            case 3:
                del out[at:]
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 8, 64)))
            case 5:
                del out[at : at + rng.choice((1, 2, 8))]
            case 6:
                other = rng.choice(others)
                cut = rng.randrange(len(other) + 1)
                out[at:] = other[cut : cut + 4096]
            case 7:
                piece = out[at : at + rng.choice((1, 4, 32))]
                out[at:at] = piece * rng.choice((1, 2, 50))
    return bytes(out)


def fuzz(cases: int, seed: int, seconds: float = float("inf")) -> Counter[str]:
    """Run ``cases`` mutations (or as many as fit into ``seconds``);
    returns how many were refused and accepted by target.

    Raises :class:`WrongAcceptance`, or whatever a decoder raised that is no ProtocolError, with the bytes to repeat it.
    """
    rng, counts, end = random.Random(seed), Counter[str](), time.monotonic() + seconds
    everything = targets()
    pool = [s for t in everything for s in t.samples]
    done = 0
    for target in everything:
        for sample in target.samples:
            if target.accept(sample) != sample:
                raise WrongAcceptance(f"{target.name}: a valid sample does not encode back to itself")
    rounds = 0
    while done < cases and time.monotonic() < end:
        rounds += 1
        for target in everything:
            if rounds % target.every:
                continue
            sample = rng.choice(target.samples)
            data = mutate(sample, pool, rng)
            done += 1
            try:
                back = target.accept(data)
            except ProtocolError:
                counts[f"{target.name}: refused"] += 1
                continue
            except Exception as e:
                raise WrongAcceptance(f"{target.name} raised {type(e).__name__}: {e} on {data[:400].hex()}") from e
            if back != data or (target.authentic and data not in target.samples):
                raise WrongAcceptance(f"{target.name} accepted {data[:400].hex()}")
            counts[f"{target.name}: accepted"] += 1
    counts["cases"] = done
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    for name, count in sorted(fuzz(options.cases, options.seed, options.seconds).items()):
        print(f"{name:<32} {count}")
