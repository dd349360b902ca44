"""The guard over the real wire: what it refuses, what that costs whom, and what it lets pass
(SECURITY.md, "The guard").

Where an honest server could not present the thing, the guard is taken out of lockstep,
so that its own decision is what is seen.
"""

from __future__ import annotations

import pytest
from consortium import Consortium
from recover import composed
from stages import Stages, lying, prelude, reason, said, shares, stages

from focal.ckks import codec, ring
from focal.ckks.scheme import REFRESH_LIMBS, Scheme
from focal.custody import keys
from focal.net import messages as msg
from focal.net.store import Blobs
from focal.protocols.blind import plan

WEIGHTS, LOGITS = "refresh/0/weights", "refresh/1/logits"
REFUSAL = "refused (range): what is to be refreshed is larger than anything a training step gives"


@pytest.fixture(scope="module")
def stage() -> Stages:
    return stages()


def refused_by_range(c: Consortium, topic: str) -> None:
    """custodian-1 gave no share of ``topic``, has no key any more, and said one word: neither item nor size."""
    assert reason(c, "custodian-1") == "range"
    assert topic not in said(c, "custodian-1") and not list(c.folder("custodian-1").glob("*.key"))
    told = [body.reason for name, _, body in c.bodies(msg.Abort) if name == "custodian-1"]
    for text in (c.processes["custodian-1"].errors, *told):
        assert REFUSAL in text and "train/" not in text and "2^" not in text


@pytest.mark.parametrize("kinds", [("constant", "labels"), ("labels", "shifted")])
def test_the_guard_by_itself_refuses_ciphertexts_of_the_servers_own_making(
    stage: Stages, kinds: tuple[str, str]
) -> None:
    """One bad item of a batch is enough, and nothing of the batch is answered."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying(f"AnsweredForgery{kinds}"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()"))
        c.start("custodian-2")
        refused_by_range(c, WEIGHTS)
        assert shares(c, "custodian-1") == []


def test_a_run_that_was_ended_leaves_no_key_share(stage: Stages) -> None:
    """Refused for any reason: here in lockstep, with requests that spell out the shares of all who
    have answered before."""
    with stage.at("uploaded") as c:
        assert list(c.folder("custodian-1").glob("secret-*.key"))
        c.start("server", prelude=lying("ForgedRefresh('constant', 'shifted')"))
        c.start("custodian-1", "custodian-2")
        assert reason(c, "custodian-1") == "lockstep"
        assert not list(c.folder("custodian-1").glob("*.key"))


def test_small_ciphertexts_pass_the_guard_and_nothing_else_may(stage: Stages) -> None:
    """An institution's labels as they are: nothing is seen of them, but they are not what was agreed.
    That is lockstep's to refuse."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying("AnsweredForgery('labels', 'labels 1')"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()"))
        c.start("custodian-2")
        c.processes["custodian-1"].reach(
            lambda e: e["event"] == "progress" and e["phase"] == "train" and e["done"] >= 1
        )
        assert {topic for topic in said(c, "custodian-1") if topic.startswith("refresh/")} == {WEIGHTS}


def test_other_answers_than_were_weighed(stage: Stages) -> None:
    """Killed between its decision and its shares, and shown other shares afterwards:
    a second decision is not to be had."""
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying("TwoAnswers(restarted=False)"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()\ndies_when_it_has_weighed()"))
        c.start("custodian-2")
        assert c.processes["custodian-1"].end() == -9 and shares(c, "custodian-1") == []
        c.processes["server"].kill()
        c.start("server", prelude=lying("TwoAnswers(restarted=True)"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()"))
        assert reason(c, "custodian-1") == "second-answers"
        assert shares(c, "custodian-1") == [] and WEIGHTS not in said(c, "custodian-1")


def test_a_custodian_that_lies_in_its_share(stage: Stages) -> None:
    """custodian-3 adds 2^125 to the weights by its own h1; server and all others are honest and custodian-1 is
    in lockstep. The next request holds 2^125 times sums of patients' features; the guard's share is missing,
    so nobody sees anything of it."""
    item = "train/0/weights/-/0/-"
    with stage.at("uploaded") as c:
        shares_of_others = others(c)
        c.start("server", "custodian-1", "custodian-2")
        c.start("custodian-3", prelude=prelude(f"lies_in('h1', 125, {item!r})"))
        refused_by_range(c, LOGITS)
        assert {topic for who, topic, _ in c.bodies(msg.RefreshShares) if who == "custodian-1"} == {WEIGHTS}
        for p in ("server", "custodian-2", "custodian-3"):
            assert c.processes[p].end() == 1 and "'custodian-1' ended the run" in c.processes[p].errors
        uniform(c, LOGITS, shares_of_others)


def others(c: Consortium) -> list[bytes]:
    """The key files of both other custodians, which are deleted when the run is ended."""
    return [next(c.folder(name).glob("secret-*.key")).read_bytes() for name in ("custodian-2", "custodian-3")]


def uniform(c: Consortium, topic: str, files: list[bytes]) -> None:
    """The request and both other custodians' shares *and keys*, added up:
    without the guard's they are uniform modulo 2^150."""
    run_id = next(body.run_id for _, _, body in c.bodies(msg.RunStart))
    scheme, blobs = Scheme(c.manifest.ckks, run_id), Blobs(c.folder("server") / "blobs")
    asked = next(body for _, about, body in c.bodies(msg.RefreshRequest) if about == topic)
    primes = scheme.moduli[:REFRESH_LIMBS]
    secrets = [keys.SecretShare.load(scheme, bytes.fromhex(run_id), data).limbs for data in files]
    for digest in asked.ciphertexts:
        c0, c1 = codec.unpack(scheme, codec.ciphertext(REFRESH_LIMBS), blobs.get(digest), "")
        total = ring.total(
            [c0, *([ring.multiply(x, y, q) for x, y, q in zip(s, c1, primes, strict=False)] for s in secrets)], primes
        )
        value = abs(composed(scheme, total, primes).astype(float))
        # a quarter of uniform values lies below an eighth of the modulus; 16384 of them within 1.5 %
        assert abs((value < 2.0**147).mean() - 1 / 4) < 0.015


def test_a_refusal_whose_word_was_lost_is_said_after_a_restart(stage: Stages) -> None:
    with stage.at("uploaded") as c:
        c.start("server", prelude=lying("AnsweredForgery('constant', 'labels')"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()\ndies_when_it_has_refused()"))
        c.start("custodian-2")
        assert c.processes["custodian-1"].end() == -9 and not list(c.folder("custodian-1").glob("*.key"))
        c.start("custodian-1", prelude=prelude("out_of_lockstep()"))
        refused_by_range(c, WEIGHTS)


def test_without_its_guard_a_run_waits_says_for_whom_and_goes_on(stage: Stages) -> None:
    with stage.at("uploaded") as c:
        c.start("server", "custodian-2", "custodian-3")
        for name in ("server", "custodian-2"):
            c.processes[name].reach(lambda e: e["event"] == "waiting" and "custodian-1" in str(e))
        assert all(c.processes[name].child.poll() is None for name in ("server", "custodian-2", "custodian-3"))
        c.start("custodian-1")
        for name in c.custodians:
            c.processes[name].reach_phase("release")


def test_the_guard_answered_last_in_an_honest_run(stage: Stages) -> None:
    with stage.at("trained") as c:
        order = [(who, topic) for who, topic, _ in c.bodies(msg.RefreshShares)]
        topics = [topic for topic, _ in plan.batches(c.manifest, plan.layout(c.manifest))]
        assert topics and [who for who, _ in order].count("custodian-1") == len(topics)
        for topic in topics:
            assert [who for who, about in order if about == topic][-1] == "custodian-1"
