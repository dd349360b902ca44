"""What is on each wire: every byte that a party received in a whole run, searched for what must not be there.

::

    needles: features, columns, labels, weights, key shares, decryption shares, nonces, names
             (known to the test, from every folder)
    hay:     runs/eyes, received by the server | a custodian | an institution
             (recorded at the sockets, decrypted)

Numbers are looked for as 8-byte windows (one float64, two neighbouring float32, one residue) at every byte
offset. A window is 64 bits of data that nobody chose: among 10^5 needles and 2 x 10^8 offsets a chance hit has
probability 10^13 / 2^64 < 10^-6.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from consortium import Dataset, Finished, dataset, finished
from numpy.typing import NDArray

from focal.ckks.scheme import Scheme
from focal.custody import keys
from focal.net import messages as msg
from focal.net.identity import open_record
from focal.segments.projection import Projection

INSTITUTIONS = ("hospital-a", "hospital-b", "hospital-c")
CUSTODIANS = ("custodian-1", "custodian-2")
PARTIES = ("server", *CUSTODIANS, *INSTITUTIONS)


@pytest.fixture(scope="module")
def run() -> Finished:
    return finished()


@pytest.fixture(scope="module")
def hay(run: Finished) -> dict[str, bytes]:
    """Party -> every byte that it received."""
    return {name: run.received(name) for name in PARTIES}


def windows(data: bytes | NDArray[np.generic], stride: int = 8) -> NDArray[np.uint64]:
    """8-byte windows of ``data``, one every ``stride`` bytes, without those that any program's zeros
    and ones would make."""
    raw = np.frombuffer(data if isinstance(data, bytes) else np.ascontiguousarray(data).tobytes(), np.uint8)
    at = np.arange(0, len(raw) - 7, stride)
    parts = raw[at[:, None] + np.arange(8)]
    varied = (np.diff(np.sort(parts, axis=1), axis=1) > 0).sum(axis=1) >= 4  # at least five different bytes
    return np.unique(np.ascontiguousarray(parts[varied]).view("<u8").reshape(-1))


def numbers(values: NDArray[np.floating]) -> NDArray[np.uint64]:
    """Needles of an array of real numbers: each float64, and each pair of neighbouring float32."""
    return np.union1d(windows(values.astype("<f8")), windows(values.astype("<f4"), stride=4))


def found(needles: NDArray[np.uint64], data: bytes) -> int:
    """How many places of ``data``, at any offset, hold one of ``needles``, which are sorted."""
    bits = min(
        24, max(12, len(needles).bit_length() + 5)
    )  # one entry in 32 is set; a small table stays in the processor's caches
    shift, odd = np.uint64(64 - bits), np.uint64(0x9E3779B97F4A7C15)
    table = np.zeros(
        1 << bits, dtype=bool
    )  # a hash table without values: few windows pass it, and those are compared exactly
    table[(needles * odd) >> shift] = True
    hits = 0
    for offset in range(8):
        words = np.frombuffer(data, "<u8", (len(data) - offset) // 8, offset)
        for start in range(0, len(words), 1 << 21):
            part = words[start : start + (1 << 21)]
            likely = part[table[(part * odd) >> shift]]
            at = np.searchsorted(needles, likely)  # np.isin would sort the needles anew for every part
            hits += int((needles[np.minimum(at, len(needles) - 1)] == likely).sum())
    return hits


def everywhere(needles: NDArray[np.uint64], hay: dict[str, bytes], parties: Iterable[str] = PARTIES) -> dict[str, int]:
    return {name: n for name in parties if (n := found(needles, hay[name]))}


# --------------------------------------------------------------------------- the search itself


def test_the_search_finds_a_planted_number(run: Finished, hay: dict[str, bytes]) -> None:
    """One feature of one patient, hidden at an odd offset in everything the server received, in either precision."""
    features = rows(run, "hospital-b")["features"]
    needles = numbers(features)
    assert len(needles) > features.size
    for planted in (features[3, 7:9].astype("<f4").tobytes(), features[3, 7:8].astype("<f8").tobytes()):
        middle = len(hay["server"]) // 2 + 3
        assert found(needles, hay["server"][:middle] + planted + hay["server"][middle:]) == 1


def test_what_was_recorded_is_the_run(run: Finished, hay: dict[str, bytes]) -> None:
    """The recordings are whole: as many bytes as were counted, with every signed record in everybody's."""
    for name in PARTIES:
        counted = run.summary["bytes"][name]["down"]
        assert abs(len(hay[name]) - counted) < 0.01 * counted + 20_000, name
    board = sqlite3.connect(run.party("server") / "board.sqlite")
    records = [r[0] for r in board.execute("SELECT data FROM record")]
    board.close()
    assert len(records) > 40
    spoken = [r for r in records if open_record(run.manifest, r).topic == "upload"]
    assert len(spoken) == 3 and all(r in hay[name] for r in spoken for name in PARTIES)


# --------------------------------------------------------------------------- data


def rows(run: Finished, name: str) -> dict[str, NDArray[Any]]:
    with np.load(run.party(name) / "rows.npz") as f:
        return dict(f)


def columns(run: Finished, name: str) -> NDArray[np.float64]:
    projection = Projection.from_bytes((run.party(name) / "projection.bin").read_bytes())
    return projection.apply(rows(run, name)["features"])[:, :-1]


def test_no_feature_and_no_column_is_on_any_wire(run: Finished, hay: dict[str, bytes]) -> None:
    values = [rows(run, n)["features"].astype(np.float64) for n in INSTITUTIONS] + [
        columns(run, n) for n in INSTITUTIONS
    ]
    assert everywhere(np.concatenate([numbers(v) for v in values]), hay) == {}


def test_no_labels_are_on_any_wire(run: Finished, hay: dict[str, bytes]) -> None:
    """The labels of an institution's train rows, in the encodings that a program would use.
    Rows are many enough to be no accident."""
    for name in INSTITUTIONS:
        own = rows(run, name)
        labels = own["labels"][own["split"] == "train"]
        assert labels.size > 100
        index = labels.argmax(axis=1)
        shapes = [labels.astype(t) for t in ("u1", "<f4", "<f8", "<i8", "<i4")] + [
            (0.5 - labels).astype(t) for t in ("<f4", "<f8")
        ]
        shapes += [index.astype(t) for t in ("u1", "<i4", "<i8")] + [np.ascontiguousarray(labels.T)]
        for party in PARTIES:
            for shape in shapes:
                assert shape.tobytes()[:96] not in hay[party], f"{party} received labels of {name}"


def test_no_weights_are_on_any_wire(run: Finished, hay: dict[str, bytes]) -> None:
    """Not even on an institution's: it decodes them itself from sealed shares."""
    weights = rows(run, "hospital-a")["weights"].astype(np.float64)
    assert everywhere(np.union1d(numbers(weights), numbers(16 * weights)), hay) == {}


def test_no_file_name_and_no_patient_is_on_any_wire(hay: dict[str, bytes]) -> None:
    assert all(
        r["filename"].startswith(Dataset.NAME) and r["patient"].startswith(Dataset.PATIENT) for r in dataset().rows()
    )
    for party in PARTIES:
        assert Dataset.NAME.encode() not in hay[party] and Dataset.PATIENT.encode() not in hay[party]


# --------------------------------------------------------------------------- secrets


def share_of(run: Finished, name: str) -> keys.SecretShare:
    """A custodian's key share, from its file."""
    run_id = next(body.run_id for _, body in records(run, msg.RunStart))
    return keys.SecretShare.load(Scheme(run.manifest.ckks, run_id), bytes.fromhex(run_id), run.key_shares[name])


def packed_limbs(share: keys.SecretShare) -> NDArray[np.uint64]:
    """Needles of a key share: its residues as they lie in memory, and packed into 6 bytes each as on the wire."""
    memory = np.stack(share.limbs).astype("<u8")
    six = np.ascontiguousarray(memory[1:6]).view(np.uint8).reshape(-1, 8)[:, :6]
    return np.union1d(windows(memory.tobytes()), windows(six[: len(six) // 4 * 4].tobytes(), stride=6))


def test_no_secret_key_limb_is_on_any_wire(run: Finished, hay: dict[str, bytes]) -> None:
    shares = [share_of(run, name) for name in CUSTODIANS]
    each = [packed_limbs(share) for share in shares]
    for share, needles in zip(shares, each, strict=True):
        known = np.stack(share.limbs).astype("<u8").tobytes()
        assert found(needles, b"odd" + known) > 16384, "the search does not know a key when it sees one"
        for party in PARTIES:  # nor as its file has it: coefficients, a byte each
            assert share.dump()[:64] not in hay[party]
    assert everywhere(np.union1d(*each), hay) == {}


def test_decryption_shares_travel_sealed_only(run: Finished, hay: dict[str, bytes]) -> None:
    needles = []
    for name in CUSTODIANS:
        (path,) = run.party(name).glob("ledger-*.sqlite")
        ledger = sqlite3.connect(path)
        shares = [s for (s,) in ledger.execute("SELECT share FROM shares WHERE protocol = 'release'")]
        ledger.close()
        assert len(shares) == run.summary["release"]["openings"]
        needles += [windows(share[256:]) for share in shares]
        sealed = dict(records(run, msg.ReleaseShares))[name].sealed
        assert set(sealed) == set(INSTITUTIONS)
        for to, digest in sealed.items():  # each box goes to the server and to whom it is for
            box = blob(run, digest)
            assert box[:64] in hay["server"] and box[:64] in hay[to]
            assert not any(box[:64] in hay[other] for other in PARTIES if other not in ("server", to))
    assert len(needles) >= len(CUSTODIANS) and all(map(len, needles))
    assert everywhere(np.unique(np.concatenate(needles)), hay) == {}


def test_private_keys_masks_and_seeds_are_on_no_wire(run: Finished, hay: dict[str, bytes]) -> None:
    for name in PARTIES:
        identity = json.loads((run.party(name) / "identity.json").read_text())
        needles = [bytes.fromhex(identity["sign"]), bytes.fromhex(identity["seal"]), identity["curve"].encode()]
        needles += [identity["sign"].encode(), identity["seal"].encode()]
        for party in PARTIES:
            assert not any(n in hay[party] for n in needles)
    assert set(run.mask_keys) == set(CUSTODIANS), "no key for masks was ever seen: the next line would mean nothing"
    for key in run.mask_keys.values():
        assert len(key) == 32 and not any(key in data or key.hex().encode() in data for data in hay.values())
    journal = sqlite3.connect(run.party("hospital-a") / "journal.sqlite")
    groups = [
        key
        for (key,) in journal.execute("SELECT value FROM once WHERE key LIKE '%group-key' AND key NOT LIKE '%/said/%'")
    ]
    journal.close()
    assert len(groups) == 2, "one for the moments, one for the histograms of the pooled ROC curve"
    for group in groups:
        assert len(group) == 32 and not any(group in data or group.hex().encode() in data for data in hay.values())


# --------------------------------------------------------------------------- who gets what


def records(run: Finished, kind: type[msg.Model]) -> list[tuple[str, Any]]:
    """(sender, body) of every record of one kind, in the board's order."""
    board = sqlite3.connect(run.party("server") / "board.sqlite")
    opened = [open_record(run.manifest, data) for (data,) in board.execute("SELECT data FROM record ORDER BY seq")]
    board.close()
    return [(r.sender, r.body) for r in opened if isinstance(r.body, kind)]


def blob(run: Finished, digest: str) -> bytes:
    return (run.party("server") / "blobs" / digest[:2] / digest[2:]).read_bytes()


def test_the_server_receives_nothing_but_records_ciphertexts_keys_and_boxes(run: Finished) -> None:
    """Every blob that members sent is named in a signed record of a kind that the protocol knows:
    there is nothing else."""
    known: set[str] = set()
    for _, b in records(run, msg.Model):
        for field in ("chunks", "proofs", "blobs", "inputs", "outputs", "ciphertexts"):
            known.update(getattr(b, field, ()))
        known.update(b.shares if isinstance(b, msg.RefreshShares) else ())
        known.update(d for d in (getattr(b, "blob", None), b.shares if isinstance(b, msg.InputCommit) else None) if d)
        known.update(getattr(b, "sealed", {}).values() if isinstance(b, msg.ReleaseShares) else ())
        if isinstance(b, msg.JointKeys):
            known |= {b.relinearisation_h1, b.relinearisation_b, *b.rotations.values()}
    held = {p.parent.name + p.name for p in (run.party("server") / "blobs").glob("??/*")}
    sums = {d for d in held - known if blob(run, d)[:4] == b"FOCL"}  # the server's own sums of key contributions
    assert held - known - sums == set() and len(sums) <= 1, "only the summed switching key is named by no record"
    rows = [d for _, body in records(run, msg.Upload) for d in body.chunks]
    assert len(rows) == len(set(rows)) > 8 and all(blob(run, d)[:4] == b"FOCL" for d in rows)


def test_an_institution_receives_nothing_that_is_for_custodians(run: Finished, hay: dict[str, bytes]) -> None:
    """Others' masked rows, contributions to keys and inputs, and refresh shares stay between server and custodians."""
    forbidden = {
        name: [d for sender, body in records(run, msg.Upload) if sender != name for d in body.chunks]
        for name in INSTITUTIONS
    }
    keys = [d for kind in (msg.KeyReveal, msg.InputReveal) for _, body in records(run, kind) for d in body.blobs]
    shares = [d for _, body in records(run, msg.RefreshShares) for d in body.shares]
    asked = [d for _, body in records(run, msg.RefreshRequest) for d in body.ciphertexts]
    assert len(keys) > 15 and len(shares) > 7 and len(asked) > 3
    for name in INSTITUTIONS:
        parts = b"".join(blob(run, digest)[300:364] for digest in [*forbidden[name], *keys, *shares, *asked])
        assert found(windows(parts), hay[name]) == 0
    # and the search works: the server has all of them
    assert all(blob(run, d)[300:364] in hay["server"] for d in [*keys[:3], *shares[:3], *forbidden["hospital-a"][:3]])
