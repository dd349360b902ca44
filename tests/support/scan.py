"""What a run publishes, for the tests of the scan (:mod:`focal.attacks.scan`): of a finished run's folder, and of
custodians in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from focal.attacks.published import OWNERS as OWNERS
from focal.attacks.published import Published as Published
from focal.attacks.published import of_run as of_run
from focal.attacks.scan import scan as scan
from focal.attacks.scan import under_one_mask as under_one_mask
from focal.attacks.scan import unmasked as unmasked
from focal.ckks import codec, ring
from focal.ckks.scheme import Scheme
from focal.custody import keys, refresh
from focal.manifest import Manifest
from focal.reading import read


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

    def shares(
        scheme: Scheme, secret: Sequence[ring.Limb], c1: Any, a: Any, bits: int, how: refresh.Map, *rest: Any
    ) -> bytes:
        share = refreshed(scheme, secret, c1, a, bits, how, *rest)
        given.append((who(secret), f"share/{len(given)}", refresh.kind(how), share))
        return share

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


def counted(published: Published) -> Mapping[str, int]:
    return {family: len(elements) for family, elements in published.families.items()}


def read_run(folder: Path, kept: Mapping[str, bytes]) -> Published:
    """A finished local run's folder."""
    return of_run(folder / "parties", read(Manifest, folder / "manifest.json"), kept)
