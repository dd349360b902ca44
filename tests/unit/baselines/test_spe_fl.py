"""SPE-FL: what an institution does to an update before it leaves, that encryption is rounding only,
and that the whole learns."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from squares import NAMES, squares, unequal

from focal.baselines import spe_fl as module
from focal.baselines.encrypted import EncryptedSum
from focal.baselines.federated import PlainSum, Sum
from focal.baselines.spe_fl import (
    ABLATION,
    POISSON_RATE,
    SIZE,
    Images,
    Settings,
    compress,
    coordinates,
    measure,
    new_network,
    poisson_noise,
    read_images,
    spe_fl,
)
from focal.data import synthetic
from focal.data.sources import ArrayImages
from focal.errors import FocalError
from focal.measure.traffic import Traffic

FREE = Settings(rounds=1, epochs=1, clip=1e9, noise=0.0, keep=1.0, encrypted=False)
"""Plain federated averaging."""

Parts = dict[str, np.ndarray]
Added = list[tuple[Sum, Parts, np.ndarray]]


@pytest.fixture(scope="module")
def train() -> dict[str, Images]:
    return unequal()


@pytest.fixture(scope="module")
def held() -> Images:
    return squares(100, 9)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[Added]:
    """(how, parts, sum) of every round that is run in a test, plain or encrypted."""
    seen: Added = []
    for kind in (PlainSum, EncryptedSum):

        def add(self: Sum, label: str, parts: Parts, add: Any = kind.add) -> Any:
            total, moved = add(self, label, parts)
            seen.append((self, parts, total))
            return total, moved

        monkeypatch.setattr(kind, "add", add)
    yield seen


# --------------------------------------------------------------------------- what leaves an institution


def test_parts_are_cut_to_the_clip_and_weighed_by_images(train: dict[str, Images], held: Images, added: Added) -> None:
    for clip in (FREE.clip, 0.01):
        spe_fl(train, held, "binary", replace(FREE, clip=clip))
    (_, whole, _), (_, clipped, total) = added
    for name, share in zip(NAMES, (1 / 6, 1 / 3, 1 / 2), strict=True):
        length = np.linalg.norm(whole[name]) / share
        assert length > 0.02  # or nothing was cut
        np.testing.assert_allclose(clipped[name], whole[name] * (0.01 / length), rtol=1e-12)
    np.testing.assert_allclose(total, sum(clipped.values()), atol=1e-16)


def test_noise_has_the_stated_mean_and_deviation() -> None:
    """Five standard errors: of the mean 1 / sqrt(k); of the variance sqrt((kurtosis - 1) / k),
    a Poisson law's being 3 + 1 / lambda."""
    k, settings = 200_000, Settings(noise=0.3, clip=7.0)
    unit = poisson_noise(k, settings, np.random.default_rng(0)) / (0.3 * 7.0 / math.sqrt(k))
    assert abs(unit.mean()) < 5 / math.sqrt(k)
    assert abs(unit.var() - 1) < 5 * math.sqrt((2 + 1 / POISSON_RATE) / k)
    counts = unit * math.sqrt(POISSON_RATE) + POISSON_RATE
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert counts.min() > -0.5  # a Poisson law's, not a rounded Gaussian's


def test_every_institution_draws_its_own_noise(train: dict[str, Images], held: Images, added: Added) -> None:
    """The first round trains alike with noise and without, so that the parts differ by the noise."""
    settings = replace(FREE, clip=2.0, keep=0.5)
    for noise in (0.0, 0.5):
        spe_fl(train, held, "binary", replace(settings, noise=noise))
    (_, without, _), (_, noisy, _) = added
    for name, share in zip(NAMES, (1 / 6, 1 / 3, 1 / 2), strict=True):
        found = (noisy[name] - without[name]) / share
        k = len(found)
        error = math.sqrt((2 + 1 / POISSON_RATE) / k)  # relative, of a variance; half of it, of a deviation
        assert np.linalg.norm(found) == pytest.approx(0.5 * 2.0, rel=5 * error / 2)
        for other in NAMES:
            if other != name:
                rest = noisy[other] - without[other]
                assert abs(found @ rest) < 5 / math.sqrt(k) * np.linalg.norm(found) * np.linalg.norm(rest)


# --------------------------------------------------------------------------- compression


@pytest.mark.parametrize("keep", [0.25, 0.3, 1.0])
def test_every_coordinate_has_its_turn_and_none_comes_twice_in_a_round(keep: float) -> None:
    size, settings = 1001, Settings(keep=keep)
    turns = [coordinates(size, settings, r) for r in range(8)]
    assert {len(np.unique(turn)) for turn in turns} == {round(keep * size)}
    assert set(np.concatenate(turns[: math.ceil(size / len(turns[0]))])) == set(range(size))


def test_what_is_kept_and_what_waits_are_the_update() -> None:
    update, chosen = np.random.default_rng(0).normal(0, 1, 500), np.array([3, 499, 20])
    kept, waits = compress(update, chosen)
    np.testing.assert_array_equal(kept, update[chosen])
    assert not waits[chosen].any()
    waits[chosen] = kept
    np.testing.assert_array_equal(waits, update)


def test_what_waits_is_sent_when_its_turn_comes(
    train: dict[str, Images], held: Images, added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every round moves every weight by 2^-7 at "a" and by its negative at "b":
    a coordinate's first turn brings all rounds till then."""
    moves = {len(train["a"].labels): 2.0**-7, len(train["b"].labels): -(2.0**-7)}

    def move(network: torch.nn.Module, own: Images, *_: Any) -> None:
        with torch.no_grad():
            for p in network.parameters():
                p += moves[len(own.labels)]

    monkeypatch.setattr(module, "_fit", move)
    spe_fl({n: train[n] for n in ("a", "b")}, held, "binary", replace(FREE, rounds=4, keep=0.25))
    for r, (_, parts, _) in enumerate(added):
        for name, share in (("a", 1 / 3), ("b", 2 / 3)):
            wanted = (r + 1) * moves[len(train[name].labels)] * share
            np.testing.assert_allclose(
                parts[name], wanted, atol=4 * 2.0**-23
            )  # four single-precision roundings of weights below 2


# --------------------------------------------------------------------------- encryption


def test_encryption_changes_rounding_only(train: dict[str, Images], held: Images, added: Added) -> None:
    """The first round's parts are the same to the bit, and the encrypted sum is that of the parts
    on its grid, to the bit."""
    for encrypted in (False, True):
        spe_fl(train, held, "binary", Settings(rounds=1, epochs=1, encrypted=encrypted))
    (_, parts, plain), (adding, encrypted_parts, opened) = added
    assert isinstance(adding, EncryptedSum)
    for name in NAMES:
        np.testing.assert_array_equal(parts[name], encrypted_parts[name])
    assert len(plain) > 70_000
    np.testing.assert_array_equal(opened, sum(np.rint(part / adding.grid) * adding.grid for part in parts.values()))
    assert np.sqrt(np.mean(plain**2)) > 100 * np.sqrt(np.mean((opened - plain) ** 2)) > 0


def test_compression_saves_ciphertexts_up_and_shares_down(
    train: dict[str, Images], held: Images, added: Added, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_fit", lambda *_: None)  # bytes do not depend on values
    monkeypatch.setattr(module, "CHANNELS", (16, 16, 32, 32))
    bytes_ = {}
    for encrypted in (False, True):
        for keep in (0.25, 1.0):
            made = spe_fl(train, held, "binary", replace(FREE, clip=1.0, keep=keep, encrypted=encrypted))
            bytes_[encrypted, keep] = made.rounds[-1].traffic
    size = sum(p.numel() for p in new_network(1, 0).parameters())
    assert len({t.up for t in bytes_[True, 0.25].values()}) == 1
    for name in NAMES:
        few, all_ = round(0.25 * size), size
        assert bytes_[False, 0.25][name] == Traffic(up=8 * few, down=8 * few)
        assert bytes_[False, 1.0][name] == Traffic(up=8 * all_, down=8 * all_)
        setup = added[-1][0].setup[name].down
        up, down = (bytes_[True, 0.25][name].up, bytes_[True, 0.25][name].down - setup)
        assert bytes_[True, 1.0][name].up * -(-few // 8192) == up * -(-all_ // 8192)
        assert (bytes_[True, 1.0][name].down - setup) * -(-few // 8192) == down * -(-all_ // 8192)


# --------------------------------------------------------------------------- training


def test_the_same_seed_gives_the_same_scores_and_torchs_generator_is_left_alone(
    train: dict[str, Images], held: Images
) -> None:
    settings = replace(FREE, noise=0.1, clip=1.0, keep=0.5)
    state = torch.get_rng_state()
    first = spe_fl(train, held, "binary", settings)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    np.testing.assert_array_equal(spe_fl(train, held, "binary", settings).scores, first.scores)
    assert not np.array_equal(spe_fl(train, held, "binary", replace(settings, seed=1)).scores, first.scores)


def test_encrypted_the_same_seed_gives_the_same_scores_too(train: dict[str, Images], held: Images) -> None:
    """Errors of encryption are others in every run; sums on a grid are not."""
    settings = Settings(rounds=2, epochs=1)
    first, second = (spe_fl(train, held, "binary", settings) for _ in range(2))
    np.testing.assert_array_equal(first.scores, second.scores)


def test_several_classes_are_scored_one_by_one() -> None:
    """Generated retinas, as a table's rows."""
    table = synthetic.generate(48, seed=3)
    own = read_images(table, np.arange(48))
    assert own.pixels.shape == (48, SIZE, SIZE, 3) and own.pixels.dtype == np.uint8
    assert spe_fl({"a": own, "b": own}, own, "multiclass", FREE).scores.shape == (48, 4)


def test_images_are_the_rows_asked_for_and_grey_ones_have_three_equal_channels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE), dtype=np.uint8)
    table = replace(synthetic.generate(5, seed=3), images=ArrayImages(pixels))
    own = read_images(table, [4, 1])
    np.testing.assert_array_equal(own.pixels, np.repeat(pixels[[4, 1]][..., None], 3, axis=3))
    np.testing.assert_array_equal(own.labels, table.labels[[4, 1]])
    assert read_images(table, []).pixels.shape == (0, SIZE, SIZE, 3)


def test_measures_are_those_counted_by_hand() -> None:
    """Binary: 2 true and 1 false alarm, 1 missed, 1 rightly left. Three classes, of which the last is never called."""
    truth = np.array([1, 1, 0, 1, 0])
    found = measure(np.eye(2)[truth], np.array([[1.0], [0.1], [2.0], [-1.0], [0.0]]), "binary")
    np.testing.assert_allclose(found, (3 / 5, 2 / 3, 2 / 3, 2 / 3))
    found = measure(np.eye(3)[[0, 0, 1, 2]], np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [5, 1, 4.0]]), "multiclass")
    np.testing.assert_allclose(found, (1 / 2, (1 / 2 + 1 / 2 + 0) / 3, (1 / 2 + 1 + 0) / 3, (1 / 2 + 2 / 3 + 0) / 3))


def test_the_ablation_changes_one_measure_at_a_time() -> None:
    default = asdict(ABLATION["spe-fl"])
    changed = {name: {f for f, v in asdict(s).items() if v != default[f]} for name, s in ABLATION.items()}
    bare = changed.pop("spe-fl-bare")
    assert changed == {
        "spe-fl": set(),
        "spe-fl-noiseless": {"noise"},
        "spe-fl-noisy": {"noise"},
        "spe-fl-plain": {"encrypted"},
        "spe-fl-whole": {"keep"},
    }
    assert bare == {"noise", "keep", "encrypted"}


# --------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0},
        {"epochs": 0},
        {"batch": 0},
        {"rate": 0.0},
        {"clip": math.inf},
        {"noise": math.nan},
        {"keep": 0.0},
        {"keep": 1.1},
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(FocalError, match=f"SPE-FL: {next(iter(wrong))} = "):
        Settings(**wrong)


def test_what_cannot_be_trained_is_an_error(train: dict[str, Images], held: Images) -> None:
    with pytest.raises(FocalError, match="of which an image has one"):
        spe_fl(train, held, "multilabel", FREE)
    with pytest.raises(FocalError, match="b: has no train images"):
        spe_fl(train | {"b": squares(0, 0)}, held, "binary", FREE)
    with pytest.raises(FocalError, match="over one institution"):
        spe_fl({"a": train["a"]}, held, "binary", Settings())
    with pytest.raises(FocalError, match="training diverged in round 0"):
        spe_fl(train, held, "binary", replace(FREE, rate=1e30))
