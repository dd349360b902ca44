"""What clinics do that they should not, and custodians that are shown different rosters: each is refused by name, and
the others lose nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rosters import consortium, given

from focal.config import LocalConfig
from focal.errors import FocalError, LeftOut, Refused
from focal.net import messages as msg
from focal.net.local import LocalLink
from focal.protocols import start
from focal.protocols.blind import roster
from focal.protocols.blind.custodian import BlindCustodian
from focal.protocols.blind.server import BlindServer
from focal.protocols.common.progress import Reporter
from focal.runs.simulate import ArrayInstitution


class BringsMore(ArrayInstitution):
    """Does not look at its ticket."""

    def check_rows(self, count: int) -> None:
        """As many as there are."""


def test_clinics_that_come_late_twice_with_more_rows_or_another_manifest(tmp_path: Path) -> None:
    clinics = {"late": 10, "more": 12, "other": 15, "twice": 20}
    with consortium(tmp_path, clinics, tuple(clinics), share_blocks=True) as run:
        agreed = run.manifest.name
        run.agree(name="another")
        elsewhere = run.manifest
        run.agree(name=agreed)
        run.start("server", "custodian-1", "custodian-2", "a", "b", "c")

        # under another manifest: refused at the door, and nothing of its own is used up
        local = run.files["other"]
        party = ArrayInstitution(elsewhere, *run.rows["other"], local, Reporter("other", tmp_path / "e", run.show))
        link = LocalLink(run.network, elsewhere, party.identity)
        with pytest.raises(Refused, match=r"refused \(manifest\): .*'other' holds another manifest") as refused:
            start.enter(party, link, 60)
        start.give_up(party, refused.value)
        party.close()
        link.close()
        assert not (local.state / "aborted").exists()
        run.start("other")

        # twice: a second machine with the same key has other keys for masks
        run.start("twice")
        run.finish("other", "twice")
        run.files["twice"] = LocalConfig(name="twice", keys=run.files["twice"].keys, state=tmp_path / "second")
        run.start("twice")
        with pytest.raises(Refused, match="'twice' has already said something else under 'inputs/key'"):
            run.finish("twice")
        del run.errors["twice"]
        run.files["twice"] = run.files["twice"].model_copy(update={"state": tmp_path / "twice"})

        # with more rows than its ticket: its list is nobody's
        run.play("more", BringsMore)
        run.rows["more"] = given("more", 14)
        run.start("more")
        run.finish("more")

        # after the closing
        run.close_uploads("late")
        run.finish("a", "b", "c", "custodian-1", "custodian-2")
        run.start("late")
        with pytest.raises(LeftOut, match="closed before it came"):
            run.finish("late")
        run.start("more")
        with pytest.raises(LeftOut, match="its list is not as agreed"):
            run.finish("more")
        assert not {"late"} & run.said(msg.Upload).keys()
        run.start("other", "twice")
        run.finish("other", "twice", "server")
        run.check("a", "b", "c", "other", "twice")
        told = {"late": roster.WHY["absent"], "more": roster.WHY["upload"]}
        assert run.parties["a"].without == told
        assert any(
            "'more' has another rows than was agreed (14, not 12)" in e["text"] for e in run.events if "text" in e
        )


class Floods(ArrayInstitution):
    """Sends more than its rows need, before its list, and says more than it has to."""

    def send_stored(self, digests: list[str], audience: Any) -> None:
        super().send_stored(digests, audience)
        self.net.put_many([bytes([i]) * (1 << 20) for i in range(1, 64)], audience)


class Talks(ArrayInstitution):
    """A founder that says a thousand things when it has its model."""

    refused: Refused | None = None

    def score(self) -> None:
        with pytest.raises(Refused) as caught:
            for i in range(1000):
                self.say(f"talk/{i}", msg.Finished())
        type(self).refused = caught.value


def test_who_floods_disk_or_board_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    """Honest members stay within what the manifest gives them; all runs of these tests have these quotas."""
    with consortium(tmp_path, {"clinic": 10, "other": 15}, ("clinic", "other"), share_blocks=True) as run:
        run.play("clinic", Floods)
        run.play("a", Talks)
        run.start()
        with pytest.raises(Refused, match=r"refused \(quota\): .*'clinic' sends .* bytes of blobs, this run needs"):
            run.finish("clinic")
        server = run.parties["server"]
        assert isinstance(server, BlindServer)
        own = sum(size for name, _, size in server.hub._audiences.sent() if name == "clinic")
        assert 0 < own <= server.quotas()["clinic"].blobs
        del run.errors["clinic"]
        run.close_uploads("clinic")
        run.finish("a", "b", "c", "other", "custodian-1", "custodian-2")
        assert Talks.refused is not None and "'a' says" in str(Talks.refused) and Talks.refused.reason == "quota"
        run.start("other")
        run.finish("other", "server")
        run.check("a", "b", "c", "other")


def test_two_custodians_that_are_shown_different_rosters_train_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has signed both. Nobody shows a contribution to anybody's rows, and the keys are gone."""
    honest = BlindCustodian.read_board

    def shown(self: BlindCustodian, seconds: float) -> int:
        read = honest(self, seconds)
        key = (self.manifest.server.name, roster.CLOSED)
        if self.me.name == "custodian-2" and key in self.heard._records:
            body = msg.Roster(present=("a", "b", "c"), incomplete=("d",))
            self.heard._records[key] = self.heard._records[key].model_copy(update={"body": body})
            self.heard._digests[key] = "1" * 64
        return read

    monkeypatch.setattr(BlindCustodian, "read_board", shown)
    monkeypatch.setattr(BlindCustodian, "may_close", lambda self, missing, enough=True: list(missing) == ["d"])
    # a custodian says the first, an institution the second, whoever reads it first
    found = (
        "was shown another roster, or other reasons for it, than we were|accepted other upload lists than others did"
    )
    with consortium(tmp_path, {"d": 20}) as run:
        run.start()
        with pytest.raises(FocalError, match=found):
            run.finish()
        assert not run.said(msg.InputCommit) and not run.said(msg.InputReveal)
        assert not [file for what in ("secret", "masks") for file in tmp_path.glob(f"*/{what}-*.key")]
