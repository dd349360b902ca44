"""Attacks on the refresh and the release, and what exactly they would yield.

A refresh share on a c1 of the server's choice spells out a custodian's secret. The custodian that verifies
gives none; what the others (``verify: off``) give is recorded here, because SECURITY.md says that without
a verifier the server is trusted.
"""

from __future__ import annotations

from typing import Any

import pytest
from attacks import CONSTANT, SHIFT
from consortium import Consortium
from numpy.typing import NDArray
from recover import composed
from stages import VICTIMS, Stages, lying, prelude, reason, said, shares, stages

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS, Scheme
from focal.custody import keys, refresh
from focal.net import messages as msg
from focal.net.store import Blobs
from focal.protocols.blind import plan

FIRST = "refresh/0/weights"


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


@pytest.mark.parametrize("kinds", [("constant", "shifted"), ("shifted", "labels")])
def test_ciphertexts_of_the_servers_own_making(stage: Stages, kinds: tuple[str, str]) -> None:
    """c1 constant; c1 = a + 2^12; the encrypted labels of hospital-b. The verifier refuses and names the plan item;
    custodian-2 answers."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying(f"ForgedRefresh{kinds}"))
        c.start(*VICTIMS)
        assert reason(c, "custodian-1") == "lockstep"
        assert "'train/0/weights/-/0/-'" in c.processes["custodian-1"].errors
        assert shares(c, "custodian-1") == [] and FIRST not in said(c, "custodian-1")

        c.processes["custodian-2"].reach(
            lambda e: e["event"] == "progress" and e["phase"] == "train" and e["done"] >= 1
        )
        assert len(shares(c, "custodian-2")) == 2
        if kinds[0] == "constant":
            secret, found = spelt_out(c, "custodian-2")
            right = [int((f == secret).sum()) for f in found]
            assert right[0] == len(secret), (
                "a share on a constant c1 gives every coefficient: only the verifier prevents it"
            )
            # `a` is derived from what is asked, so c1 - a is uniform whatever c1 is:
            # the quotient by 2^12 hits -1, 0, 1 by chance only
            assert right[1:] == [0, 0], "c1 = a + 2^12 gives nothing, because a is derived from c1"


def spelt_out(c: Consortium, name: str) -> tuple[NDArray[Any], list[NDArray[Any]]]:
    """A custodian's ternary secret from its own file, and what its shares on a constant c1
    and on c1 = a + 2^12 say that it is.

    h0 = s c1 - M gives s = round(h0 / 2^135), the mask M stays below 2^105. In h0 + h1 = s (c1 - a) + e - M + L(M) the
    mask stays where the item has a map L; it cancels in L(h0) + h1 = L(s c1) - s a + e. Neither is small:
    round(. / 2^12) is no secret.
    """
    share: msg.RefreshShares = next(
        body for who, topic, body in c.bodies(msg.RefreshShares) if (who, topic) == (name, FIRST)
    )
    run_id = next(body.run_id for _, _, body in c.bodies(msg.RunStart))
    scheme, blobs = Scheme(c.manifest.ckks, run_id), Blobs(c.folder("server") / "blobs")
    (file,) = c.folder(name).glob("secret-*.key")
    secret = keys.SecretShare.load(scheme, bytes.fromhex(run_id), file.read_bytes()).secret
    primes = scheme.moduli[:REFRESH_LIMBS]

    hows = [plan.layout(c.manifest).refresh_map(item) for item in share.items[:2]]
    (on_constant, _), (h0, h1) = (
        codec.unpack(scheme, refresh.kind(how), blobs.get(digest), name)
        for how, digest in zip(hows, share.shares, strict=False)
    )
    mapped = [hows[1].linear(limb, q) for limb, q in zip(h0, primes, strict=True)]
    seen = [(on_constant, CONSTANT), *((ring.total([x, h1[:REFRESH_LIMBS]], primes), SHIFT) for x in (h0, mapped))]
    return secret, [(composed(scheme, limbs, primes) + step // 2) // step for limbs, step in seen]


def test_one_ciphertext_under_two_items_and_items_out_of_the_plans_order(stage: Stages) -> None:
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying("OutOfPlan()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["plan", "second-item"]
        assert not any(FIRST in said(c, v) for v in VICTIMS)
        assert [shares(c, v) for v in VICTIMS] == [[], []], "two shares were made of one ciphertext, with two masks"


def test_two_ciphertexts_under_one_item(stage: Stages) -> None:
    """Shown together, and shown one after the other around a kill -9 between ledger and network."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying("TwoRequests(restarted=False)"))
        c.start("custodian-1")
        c.start("custodian-2", prelude=prelude("dies_with_shares_made()"))
        assert reason(c, "custodian-1") == "second-record"
        assert "the server shows two records" in c.processes["custodian-1"].errors
        assert c.processes["custodian-2"].end() == -9
        given = c.ledger("custodian-2")
        assert len(shares(c, "custodian-2")) == 2 and FIRST not in said(c, "custodian-2")

        c.processes["server"].kill()
        c.start("server", prelude=lying("TwoRequests(restarted=True)"))
        c.start("custodian-2")
        assert reason(c, "custodian-2") == "second-digest"
        assert c.ledger("custodian-2") == given and FIRST not in said(c, "custodian-2")


@pytest.mark.parametrize(("now", "then", "seen"), [("trained", "uploaded", 7), ("uploaded", "accepted", 1)])
def test_a_backup_from_before_the_first_share(stage: Stages, now: str, then: str, seen: int) -> None:
    """It does not know that it ever gave a share, or contributed to the inputs, and its server denies it;
    its peers know. (A later backup: test_restart.py.)"""
    with stage.at(now) as c:
        stage.restore("custodian-2", then)
        had = c.ledger("custodian-2")
        assert shares(c, "custodian-2") == [] and len(had) == (then == "uploaded")
        c.start("server", prelude=lying("ForgetfulBoard()"))
        c.start(*VICTIMS)
        assert reason(c, "custodian-2") == "old-ledger"
        # the contributions to inputs, and 3 batches of 2 class groups
        assert f"'custodian-1' has seen {seen} of our shares" in c.processes["custodian-2"].errors
        assert c.ledger("custodian-2") == had


def test_nothing_but_the_last_refresh_is_released(stage: Stages) -> None:
    """Asked for an institution's encrypted rows, or for the weights of an earlier step."""
    with stage.at("trained") as c:
        c.start("server", prelude=lying("FalseRelease()"))
        c.start(*VICTIMS)
        assert [reason(c, v) for v in VICTIMS] == ["release", "release"]
        for victim in VICTIMS:
            assert "release/shares" not in said(c, victim)
            assert not [share for share in shares(c, victim) if share[0] == "release"]
