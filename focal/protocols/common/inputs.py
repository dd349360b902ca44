"""Collective encryption as its parties speak of it (:mod:`focal.custody.inputs`):
keys of masks, contributions, and who checks them.

::

    inputs/key            institutions and custodians: a public key for masks, one a run (where rows are masked anew in
                          another epoch of a blind run: another one)
    (lists or headers)    the institutions' masked rows are named, and everybody who answers has
                          agreed to the same names
    ROUND/commit          every custodian: its shares of the range checks, and a commitment to its contributions
    ROUND/reveal          once all checks hold: the contributions to the inputs of this round, in their order

A round is ``inputs`` in a blind run, ``inputs/STEP/activations`` and ``inputs/STEP/derivatives`` in an interactive one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from focal import framing
from focal.ckks import codec
from focal.ckks.ring import Limb
from focal.ckks.scheme import Scheme
from focal.custody import inputs, projections
from focal.custody.inputs import Input, Message
from focal.custody.integer_gaussian import SystemBelow
from focal.custody.projections import Attempt, Lanes, Proof, Statement
from focal.errors import FocalError, ProtocolError, Refused, Told
from focal.files import forget, private_write
from focal.net import messages as msg
from focal.net.encoding import encode
from focal.protocols.common.hearing import check_opens
from focal.protocols.common.party import Party
from focal.protocols.common.voice import Fetch, Given

KEY = "inputs/key"
"""Topic of a public key for masks."""


@dataclass(frozen=True)
class Claim:
    """What an institution says of the size of its messages, and proves (:mod:`focal.custody.projections`)."""

    statement: Statement
    items: tuple[str, ...]
    """What the messages are called, in the statement's order."""
    label: str
    proof: str
    """Digest of the proof."""

    @property
    def topic(self) -> str:
        """What is proven once and no more."""
        return f"range/{self.statement.institution}/{self.statement.name}"


Weighed = tuple[Proof, list[int]]
"""A claim's proof and the projection of what was uploaded."""
MALFORMED = ("length", "header", "range-form", "range-size")
"""Why an institution's blobs are refused: what is in them, which is the same for whoever looks. All else that goes
wrong with a blob is between this party and the server."""

NOT_GIVEN = ("unknown-blob", "audience")
"""Why there are no shares of a custodian to look at, by the server's word."""


def _its_own(fault: Refused) -> Refused:
    """``fault`` if it is that of the institution whose blobs these are; else raised: the server's word for it too."""
    if isinstance(fault, Told) or fault.reason not in MALFORMED:
        raise fault
    return fault


class RunKey:
    """``party``'s own X25519 key for one use in this run: its public half is told to everybody under ``topic``."""

    def __init__(self, party: Party, topic: str, name: str) -> None:
        self.party, self.topic = party, topic
        self.file = party.folder / f"{name}.key"

    def say(self) -> None:
        """Tell everybody the public key; again after a restart, when the private one may have been erased."""
        if not self.party.repeat(self.topic):
            self.party.say(self.topic, msg.InputKey(public=inputs.public_key(self.private)))

    @functools.cached_property
    def private(self) -> bytes:
        """Drawn once; the file (0600) is the only copy. Raises :class:`FocalError` when the public key was told
        and the file is gone."""
        if not self.file.exists():
            if self.party.journal.get(f"{self.party.session}/said/{self.party.spelled(self.topic)}") is not None:
                raise FocalError(
                    f"'{self.party.me.name}': the key {self.file} is gone",
                    hint="the masks of this run need it: start a new run",
                )
            private_write(self.file, inputs.new_key())
        return self.file.read_bytes()


class MaskKeys(RunKey):
    """``party``'s own key for masks, drawn for this run, and the keys that it shares
    with institutions or custodians."""

    def __init__(self, party: Party) -> None:
        super().__init__(party, KEY, f"masks-{party.scope[:16]}{party.epochs.at(KEY).suffix.replace('/', '-')}")
        self._shared: dict[str, bytes] = {}

    def digest(self, custodians: Sequence[str]) -> str:
        """Over an institution's own public key and the custodians', which it has heard."""
        keys = self.party.hear_all([self.party.me.name, *custodians], KEY, msg.InputKey)
        return keys_digest(self.party.me.name, custodians, keys)

    def forget(self) -> None:
        """Erase the key, and those of earlier epochs: all that they mask is made and sent."""
        forget(*mask_files(self.party))

    def label(self, item: str, *rows: bytes) -> str:
        """What tells the masks of these rows from those of any others."""
        return inputs.label(self.private, item, *rows)

    def masked(self, scheme: Scheme, message: Message, label: str, item: str, custodians: Sequence[str]) -> bytes:
        """An institution's message under a mask of each of these custodians, whom it has met. The same again at each
        call."""
        masks = [inputs.mask(self._shared[name], label, item, scheme.n) for name in custodians]
        return inputs.masked(scheme, message, masks)

    def proof(
        self, statement: Statement, messages: Callable[[], Iterable[Message]], custodians: Sequence[str]
    ) -> bytes:
        """An institution's proof of ``statement``; ``messages`` anew at each call. The same again after a restart.

        Raises :class:`FocalError` when it is not true.
        """

        def attempt(item: str) -> Attempt:
            # drawn from the key and the statement: even a folder that was restored from a copy makes no second one
            secret = framing.keyed(self.private, b"focal/range/attempt/v1", item.encode())
            return Attempt.draw(statement.sigma, SystemBelow(projections.derived(secret)))

        return projections.prove(statement, [self._shared[name] for name in custodians], messages, attempt).dump()

    def weighed(self, scheme: Scheme, claim: Claim, fetch: Fetch) -> tuple[bytes, Weighed | Refused]:
        """A custodian's share of the check of a claim, for one proof of a statement, ever; and what it weighs the claim
        by itself. Of one that is malformed: zeros, and what is wrong with it."""
        statement, who = claim.statement, f"'{claim.statement.institution}'"
        key, names = self._shared[statement.institution], zip(claim.items, statement.digests, strict=True)

        def place(item: str, digest: str) -> tuple[Lanes, Lanes]:
            own = inputs.mask(key, claim.label, item, scheme.n)
            uploaded = codec.unpack_masked(scheme, fetch(digest), who)
            return projections.mask_lanes(own), projections.upload_lanes(uploaded)

        try:
            proof = Proof.load(fetch(claim.proof), who)
            projections.check_size(statement, proof)
            masks, uploads = projections.project(statement, proof.challenge(statement), itertools.starmap(place, names))
        except Refused as e:
            return bytes(projections.SHARE_BYTES), _its_own(e)
        return projections.share(statement, proof, key, masks), (proof, uploads)

    def wrong_shares(
        self, scheme: Scheme, claims: Sequence[Claim], given: Mapping[str, Sequence[bytes]], fetch: Fetch
    ) -> list[str]:
        """Custodians, met by this institution, whose shares of the checks of its own claims are not what follows from
        the masks that both have. ``given``: custodian -> its shares, one for each claim."""
        wrong: dict[str, None] = {}
        for i, claim in enumerate(claims):
            statement, proof = claim.statement, Proof.load(fetch(claim.proof), f"'{claim.statement.institution}'")
            lanes = (
                [projections.mask_lanes(inputs.mask(self._shared[name], claim.label, item, scheme.n)) for name in given]
                for item in claim.items
            )
            masks = projections.project(statement, proof.challenge(statement), lanes)
            for (name, shares), own in zip(given.items(), masks, strict=True):
                if projections.share(statement, proof, self._shared[name], own) != shares[i]:
                    wrong[name] = None
        return list(wrong)

    def contribution(self, scheme: Scheme, secret: Sequence[Limb], seed: bytes, lists: str, wanted: Input) -> bytes:
        """A custodian's contribution to one input. Anew at each call: through the ledger only."""
        a = inputs.public_random(scheme, seed, lists, wanted.item, wanted.limbs)
        masks = [inputs.mask(self._shared[name], label, wanted.item, scheme.n) for name, label in wanted.owners]
        return inputs.contribution(scheme, secret, a, masks, wanted.factor)

    def meet(self, others: Iterable[str]) -> None:
        """Agree on a key with each of these institutions or custodians; waits for their public keys."""
        me, run_id = self.party.me, self.party.run_id
        for other, theirs in self.party.hear_all(others, KEY, msg.InputKey).items():
            institution, custodian = (me.name, other) if me.role == "institution" else (other, me.name)
            if other not in self._shared:
                self._shared[other] = inputs.pair_key(self.private, theirs.public, run_id, institution, custodian)


def mask_files(party: Party) -> list[Path]:
    """This run's keys for masks, of all epochs."""
    return list(party.folder.glob(f"masks-{party.scope[:16]}*.key"))


def keys_digest(institution: str, custodians: Sequence[str], keys: Mapping[str, msg.InputKey]) -> str:
    """One digest over the public keys for masks of an institution and of every custodian."""
    fields = [
        field for name in (institution, *custodians) for field in (name.encode(), bytes.fromhex(keys[name].public))
    ]
    return framing.digest(b"focal/mask-keys/v1", *fields).hex()


def check_keys(said: Mapping[str, str], custodians: Sequence[str], keys: Mapping[str, msg.InputKey]) -> None:
    """Raise :class:`Refused` (``mask-keys``) unless each institution met the public keys that we were shown.
    ``said``: institution -> the digest that it signed."""
    for name, digest in said.items():
        if not keys.keys() >= {name, *custodians} or digest != keys_digest(name, custodians, keys):
            raise Refused(
                "mask-keys",
                f"'{name}' masked its rows with other keys than we were shown: the server told us different things",
            )


def commits_digest(commits: Mapping[str, msg.InputCommit]) -> str:
    """One digest over what every custodian committed to in a round, and its shares of range checks."""
    fields = [field for name, commit in commits.items() for field in (name.encode(), encode(commit))]
    return framing.digest(b"focal/input-commits/v1", *fields).hex()


def check_lists(round: str, lists: str, commits: Mapping[str, msg.InputCommit]) -> None:
    """Raise :class:`Refused` (``inputs``) unless all custodians committed to contributions to the same lists."""
    for name, commit in commits.items():
        if commit.lists != lists:
            raise Refused("inputs", f"'{name}' contributes to other lists than we were shown ('{round}')")


def shown(wanted: Sequence[Input], blobs: Sequence[str], left_out: Iterable[str]) -> list[str]:
    """Those of a custodian's contributions that it shows: to inputs of nobody who is left out."""
    without = set(left_out)
    return [blob for one, blob in zip(wanted, blobs, strict=True) if without.isdisjoint(name for name, _ in one.owners)]


def committed(lists: str, blobs: Sequence[str]) -> bytes:
    """What a custodian commits to before anybody shows a contribution."""
    return framing.digest(b"focal/input-contributions/v1", bytes.fromhex(lists), *map(bytes.fromhex, blobs))


def check(
    scope: str,
    round: str,
    lists: str,
    count: int,
    commits: Mapping[str, msg.InputCommit],
    reveals: Mapping[str, msg.InputReveal],
) -> Given:
    """Contributions of every custodian to the ``count`` inputs of ``round``.

    Raises :class:`Refused`: ``inputs`` for contributions to other lists, another number of them or where other
    institutions are left out, ``commitment`` for one that does not open its own or was made in view of others.
    """
    seen = commits_digest(commits)
    check_lists(round, lists, commits)
    left_out = same_left_out(round, reveals)
    for name, reveal in reveals.items():
        if reveal.commits != seen:
            raise Refused("commitment", f"'{name}' was shown other commitments to the inputs of '{round}' than we were")
        if len(reveal.blobs) != count:
            raise ProtocolError(f"'{name}' contributed to {len(reveal.blobs)} inputs of '{round}', there are {count}")
        check_opens(scope, round, name, commits[name], reveal.salt, committed(lists, reveal.blobs))
    return Given({name: reveal.blobs for name, reveal in reveals.items()}, tuple(left_out))


def same_left_out(round: str, reveals: Mapping[str, msg.InputReveal]) -> Mapping[str, int]:
    """Whom all custodians leave out. Raises :class:`Refused` (``inputs``) naming two that do not agree: one of them is
    wrong, and only whoever makes the range checks can tell which."""
    first, *_ = reveals
    for name, reveal in reveals.items():
        if reveal.left_out != reveals[first].left_out:
            theirs, others = (_listed(reveals[one].left_out) for one in (name, first))
            raise Refused(
                "inputs",
                f"'{first}' leaves out {others} of '{round}', '{name}' {theirs}: one of the two is wrong",
                hint="'focal audit' makes the range checks again, and says which",
            )
    return reveals[first].left_out


def check_left_out(round: str, name: str, reveal: msg.InputReveal, left_out: Mapping[str, int]) -> None:
    """Raise :class:`Refused` (``inputs``) unless a custodian leaves out whom our own range checks say."""
    if reveal.left_out != left_out:
        theirs, ours = _listed(reveal.left_out), _listed(left_out)
        raise Refused("inputs", f"'{name}' leaves out {theirs} of '{round}', where its range checks say {ours}")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"


def weigh(scheme: Scheme, claim: Claim, fetch: Fetch) -> Weighed | Refused:
    """A claim's proof and the projection of what was uploaded; or what is malformed about it."""
    who, statement = f"'{claim.statement.institution}'", claim.statement
    lanes = (
        (projections.upload_lanes(codec.unpack_masked(scheme, fetch(digest), who)),) for digest in statement.digests
    )
    try:
        proof = Proof.load(fetch(claim.proof), who)
        (found,) = projections.project(statement, proof.challenge(statement), lanes)
    except Refused as e:
        return _its_own(e)
    return proof, found


def shares_of(name: str, commit: msg.InputCommit, fetch: Fetch) -> bytes:
    """A custodian's shares of all range checks of a round. Raises :class:`Refused` (:data:`NOT_GIVEN`) naming it where
    they are not there, or not for us."""
    try:
        return fetch(commit.shares)
    except Refused as e:
        if e.reason not in NOT_GIVEN:
            raise
        raise Refused(e.reason, f"the server has no shares of range checks of '{name}' for us") from None


def unproven(
    claims: Sequence[Claim], weighed: Sequence[Weighed | Refused], shares: Mapping[str, bytes]
) -> dict[str, Refused]:
    """Institutions with a claim that does not hold, and why. ``weighed``: of each claim, or what is malformed about
    it; ``shares``: custodian -> its shares of all checks. Raises :class:`Refused` (``length``) naming a custodian."""
    size, failed = projections.SHARE_BYTES, dict[str, Refused]()
    for name, data in shares.items():
        if len(data) != size * len(claims):
            raise Refused(
                "length",
                f"'{name}': its shares of {len(claims)} range checks have {size * len(claims)} bytes, not {len(data)}",
            )
    for i, (claim, found) in enumerate(zip(claims, weighed, strict=True)):
        own = [(f"'{name}'", data[i * size : (i + 1) * size]) for name, data in shares.items()]
        try:
            if isinstance(found, Refused):
                raise found
            proof, uploaded = found
            projections.check(claim.statement, proof, uploaded, own)
        except Refused as e:
            failed.setdefault(claim.statement.institution, e)
    return failed


def refuse(failed: Mapping[str, Refused]) -> dict[str, int]:
    """Where there is no run without an institution whose claims do not hold: raises what is wrong with the first."""
    for fault in failed.values():
        raise fault
    return {}


def combined(
    scheme: Scheme,
    seed: bytes,
    lists: str,
    wanted: Input,
    uploads: Sequence[tuple[str, bytes]],
    given: Sequence[tuple[str, str]],
    fetch: Fetch,
) -> list[list[Limb]]:
    """(c0, c1) of an input from its owners' (name, masked rows) and the custodians' (name, digest)."""
    a = inputs.public_random(scheme, seed, lists, wanted.item, wanted.limbs)
    return inputs.combine(scheme, a, uploads, [(f"'{name}'", fetch(digest)) for name, digest in given], wanted.factor)
