"""`focal audit`: a finished run is found to be what its signed messages say,
and each change of it is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from consortium import Finished, cli, finished, focal, said
from shared import copy

from focal.net import messages as msg
from focal.net.identity import Identity, open_record


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished()


class Store:
    """A copy of a finished run's server folder, with a few ways to falsify it."""

    def __init__(self, run: Finished, folder: Path) -> None:
        self.run, self.folder = run, folder
        copy(run.party("server"), folder)

    def body(self, sender: str, topic: str) -> Any:
        with closing(sqlite3.connect(self.folder / "board.sqlite")) as db:
            (data,) = db.execute("SELECT data FROM record WHERE sender = ? AND topic = ?", (sender, topic)).fetchone()
        return open_record(self.run.manifest, data).body

    def say(self, sender: str, topic: str, **changes: Any) -> None:
        """Replace fields of a record, newly and validly signed by its sender."""
        body, scope = (
            self.body(sender, topic),
            self.body(sender if sender != "server" else "custodian-1", "run/start").run_id,
        )
        signed = Identity.load(self.run.party(sender) / "identity.json").sign_record(
            scope, topic, body.model_copy(update=changes)
        )
        self._write(sender, topic, signed)

    def _write(self, sender: str, topic: str, data: bytes) -> None:
        with closing(sqlite3.connect(self.folder / "board.sqlite")) as db, db:
            assert (
                db.execute("UPDATE record SET data = ? WHERE sender = ? AND topic = ?", (data, sender, topic)).rowcount
                == 1
            )

    def unsigned(self, sender: str, topic: str) -> None:
        """One bit of a record changes, its signature does not."""
        with closing(sqlite3.connect(self.folder / "board.sqlite")) as db:
            (data,) = db.execute("SELECT data FROM record WHERE sender = ? AND topic = ?", (sender, topic)).fetchone()
        last = self.body(sender, topic).model_dump()["digest"].encode()
        assert data.count(last) == 1
        self._write(sender, topic, data.replace(last, last[:-1] + (b"0" if last[-1:] != b"0" else b"1")))

    def flip(self, digest: str) -> None:
        """One bit of a blob changes."""
        path = self.folder / "blobs" / digest[:2] / digest[2:]
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.unlink()  # it is linked to the original
        path.write_bytes(data)


def last_step(store: Store) -> int:
    return store.run.manifest.training.steps - 1


def flip_upload(store: Store) -> str:
    digest = store.body("hospital-b", "upload").chunks[0]
    store.flip(digest)
    return digest[2:]


def flip_contribution(store: Store) -> str:
    digest = store.body("custodian-2", "keys/1/reveal").blobs[3]
    store.flip(digest)
    return digest[2:]


def flip_answer(store: Store) -> str:
    digest = store.body("custodian-2", f"refresh/{last_step(store)}/weights").shares[0]
    store.flip(digest)
    return digest[2:]


def swap_answers(store: Store) -> str:
    """custodian-2's answers of two batches change places: the logits of the second step are those of other weights."""
    ones, twos = (store.body("custodian-2", f"refresh/{step}/weights") for step in (0, 1))
    store.say("custodian-2", "refresh/0/weights", shares=twos.shares[:1] + ones.shares[1:])
    return "step 0"


def swap_items(store: Store) -> str:
    """custodian-2's answers of two items of one batch change places:
    the weights of that step are those of other residuals."""
    asked = store.body("custodian-2", "refresh/1/logits")
    store.say("custodian-2", "refresh/1/logits", shares=asked.shares[1::-1] + asked.shares[2:])
    return "'train/1/weights/"


def other_step(store: Store) -> str:
    store.say("server", f"step/{last_step(store)}", outputs=store.body("server", "step/0").outputs)
    return f"step {last_step(store)}"


def other_chunk(store: Store) -> str:
    chunks = store.body("hospital-b", "upload").chunks
    store.say("hospital-b", "upload", chunks=(chunks[1], chunks[0], *chunks[2:]))
    return "refused (uploads): 'custodian-1' accepted other upload lists"


def other_label(store: Store) -> str:
    store.say("hospital-b", "upload", label=store.body("hospital-a", "upload").label)
    return "refused (uploads): 'custodian-1' accepted other upload lists"


def other_lists(store: Store) -> str:
    store.say("custodian-2", "inputs/commit", lists="00" * 32)
    return "refused (inputs): 'custodian-2' contributes to other lists"


def other_inputs(store: Store) -> str:
    blobs = store.body("custodian-2", "inputs/reveal").blobs
    store.say("custodian-2", "inputs/reveal", blobs=(blobs[1], blobs[0], *blobs[2:]))
    return "refused (commitment): what 'custodian-2' revealed in 'inputs' is not what it had committed to"


def other_commitment(store: Store) -> str:
    store.say("custodian-2", "inputs/commit", commitment="00" * 32)
    return "refused (commitment): 'custodian-1' was shown other commitments to the inputs of 'inputs' than we were"


def fewer_inputs(store: Store) -> str:
    blobs = store.body("custodian-2", "inputs/reveal").blobs
    store.say("custodian-2", "inputs/reveal", blobs=blobs[1:])
    return f"'custodian-2' contributed to {len(blobs) - 1} inputs of 'inputs', there are {len(blobs)}"


def flip_input(store: Store) -> str:
    digest = store.body("custodian-2", "inputs/reveal").blobs[-1]
    store.flip(digest)
    return digest[2:]


def other_keys(store: Store) -> str:
    joint = store.body("custodian-2", "keys/joint")
    store.say("custodian-2", "keys/joint", relinearisation_h1=joint.relinearisation_b)
    return "refused (joint-keys): 'custodian-2'"


def other_signature(store: Store) -> str:
    store.unsigned("custodian-2", "uploads/accepted")
    return "a signature of 'custodian-2' is not valid"


def other_release(store: Store) -> str:
    store.say("custodian-1", "release/shares", ciphertexts=store.body("server", "step/0").outputs)
    return "refused (release): 'custodian-1'"


def test_a_finished_run_is_what_it_says(run: Finished) -> None:
    result = focal("audit", run.folder)
    assert result.returncode == 0 and "every digest is the same" in said(result)
    step = run.manifest.training.steps - 1
    with closing(sqlite3.connect(run.party("server") / "board.sqlite")) as db:
        (data,) = db.execute("SELECT data FROM record WHERE topic = ?", (f"step/{step}",)).fetchone()
    done: msg.StepDone = open_record(run.manifest, data).body  # type: ignore[assignment]
    assert done.chain in said(result)


def test_a_run_is_audited_before_its_release(run: Finished, tmp_path: Path) -> None:
    """While custodians wait for a person's word; one that has answered answers for all it was asked, as ever."""
    store = Store(run, tmp_path / "waiting")

    def forget(*senders: str) -> None:
        with closing(sqlite3.connect(store.folder / "board.sqlite")) as db, db:
            for sender in senders:
                db.execute("DELETE FROM record WHERE topic = 'release/shares' AND sender = ?", (sender,))

    first, *others = [m.name for m in run.manifest.custodians]
    forget(first)
    audited = cli("audit", run.folder, "--from", store.folder)
    assert audited.returncode == 1 and f"'{first}' said nothing under 'release/shares'" in audited.stderr
    forget(*others)
    audited = cli("audit", run.folder, "--from", store.folder)
    assert audited.returncode == 0, audited.stderr
    assert "no custodian has given its share yet" in said(audited) and "every digest is the same" in said(audited)


def test_from_another_folder_one_changed_bit_of_an_upload_is_found(run: Finished, tmp_path: Path) -> None:
    """The manifest and the store are all that an auditor needs; here they lie somewhere else."""
    store = Store(run, tmp_path / "elsewhere")
    found = flip_upload(store)
    shutil.copy(run.folder / "manifest.json", tmp_path / "manifest.json")
    result = cli("audit", tmp_path / "manifest.json", "--from", store.folder)
    assert result.returncode == 1 and "other bytes than were written" in said(result)
    assert found in in_one_piece(said(result))


def in_one_piece(text: str) -> str:
    """Without the spaces at which a terminal breaks long names."""
    return "".join(text.split())


@pytest.mark.parametrize(
    "falsify",
    [
        flip_contribution,
        flip_answer,
        swap_answers,
        swap_items,
        other_step,
        other_chunk,
        other_label,
        other_lists,
        other_inputs,
        other_commitment,
        fewer_inputs,
        flip_input,
        other_keys,
        other_signature,
        other_release,
    ],
)
def test_a_falsified_record_is_found_and_named(run: Finished, tmp_path: Path, falsify: Callable[[Store], str]) -> None:
    store = Store(run, tmp_path / "store")
    named = falsify(store)
    result = cli("audit", run.folder, "--from", store.folder)
    assert result.returncode == 1 and in_one_piece(named) in in_one_piece(said(result)), said(result)
