"""Adding up key rounds: the same few lines for the custodians, who check the sums, and the server, who uses them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from focal import framing
from focal.ckks import codec
from focal.ckks.scheme import Scheme
from focal.custody import keys, sharing
from focal.errors import ProtocolError, Refused
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.protocols.common.hearing import Heard


def blobs_digest(digests: Sequence[str]) -> bytes:
    """What a custodian commits to: the digests of its contributions, in order."""
    return framing.digest(b"focal/contributions/v1", *map(bytes.fromhex, digests))


def check_shape(name: str, reveal: msg.KeyReveal, kinds: Sequence[tuple[str, codec.Kind]]) -> None:
    """Raise unless ``name`` revealed one blob for every key of the round."""
    if len(reveal.blobs) != len(kinds):
        raise ProtocolError(
            f"'{name}' contributed {len(reveal.blobs)} keys to round {reveal.round}, {len(kinds)} are needed"
        )


def transcript(heard: Heard, custodians: Sequence[str], number: int) -> str:
    """Digest of all that custodians committed to and revealed in a key round."""
    seen = (heard.digest(p, f"keys/{number}/{part}") for part in ("commit", "reveal") for p in custodians)
    return framing.digest(b"focal/transcript/v1", *map(bytes.fromhex, seen)).hex()


def checks_digest(checks: Mapping[str, msg.ShareCheck]) -> str:
    """Over what every custodian shows of the pieces that it dealt."""
    fields = [field for name, check in checks.items() for field in (name.encode(), bytes.fromhex(check.blob))]
    return framing.digest(b"focal/share-checks/v1", *fields).hex()


def check_dealing(
    scheme: Scheme,
    needed: int,
    first: Mapping[str, msg.KeyReveal],
    checks: Mapping[str, msg.ShareCheck],
    fetch: Callable[[str], bytes],
) -> None:
    """What everybody can check of the dealing of a t-of-N key. Raises :class:`focal.errors.Refused` naming the
    dealer."""
    for name, reveal in first.items():
        sharing.check_dealer(scheme, fetch(checks[name].blob), fetch(reveal.blobs[1]), needed, len(first), name)


def sums(
    scheme: Scheme,
    kinds: Sequence[tuple[str, codec.Kind]],
    reveals: dict[str, msg.KeyReveal],
    fetch: Callable[[str], bytes],
    keep: Callable[[bytes], object],
    pool: ThreadPoolExecutor,
    progress: Callable[[float, float], None],
) -> dict[str, str]:
    """Key name -> digest of its sum over all custodians. Each sum is handed to ``keep``;
    one per thread is in memory."""
    for name, reveal in reveals.items():
        check_shape(name, reveal, kinds)

    def one(i: int) -> str:
        total = keys.add_up(scheme, kinds[i][1], [(name, fetch(reveal.blobs[i])) for name, reveal in reveals.items()])
        keep(total)
        return codec.digest(total)

    out: dict[str, str] = {}
    for (name, _), total in zip(kinds, pool.map(one, range(len(kinds))), strict=True):
        out[name] = total
        progress(len(out), len(kinds))
    return out


def joint(first: dict[str, str], second: dict[str, str]) -> msg.JointKeys:
    """The statement of all joint keys that every custodian signs."""
    rotations = {name.removeprefix("rotation/"): d for name, d in first.items() if name.startswith("rotation/")}
    return msg.JointKeys(
        relinearisation_h1=first["relinearisation/h1"],
        relinearisation_b=second["relinearisation/b"],
        rotations=rotations,
    )


def install(scheme: Scheme, run_id: bytes, keys_: msg.JointKeys, fetch: Callable[[str], bytes]) -> None:
    """Give the evaluator the evaluation keys of ``keys_``, whose sums this party has made itself."""
    rotations = {int(r): total for r, total in keys_.rotations.items()}
    keys.install(scheme, run_id, keys_.relinearisation_h1, keys_.relinearisation_b, rotations, fetch)


def joint_digest(keys_: msg.JointKeys) -> str:
    """One digest over all joint keys."""
    return framing.digest(b"focal/joint-keys/v1", encode(keys_)).hex()


def disagreement(name: str) -> Refused:
    """The error when a custodian's sums are not ours."""
    return Refused(
        "joint-keys", f"'{name}' added up other joint keys than we did: somebody was shown other contributions"
    )
