"""The table of leaks says what was counted, and joins what was reproduced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from focal.attacks.beside import write_beside
from focal.measure.leaks import FILE, FOLDER, Counted, Leak, Leaks, read_leaks
from focal.reading import write
from focal.reporting import leaks as drawn

NONE = Counted(k=0, n=512, low=0, high=0.0075)
SOME = Counted(k=300, n=512, low=0.54, high=0.63)
EIGHT = Counted(k=8, n=512, low=0.008, high=0.03)


def leak(name: str, images: Counted | None, seed: int = 0, **more: Any) -> Leak:
    told: dict[str, Any] = {"mean": EIGHT, "random": NONE, "control": NONE, "psnr": 20.0, "ssim": 0.6} if images else {}
    fields: dict[str, Any] = {
        "method": name.split(".")[0],
        "title": f"title of {name}",
        "threat": "passive-server",
        "active": False,
    }
    fields |= {"configuration": "0" * 64, "assumes": "", "teeth": name, "seconds": 1}
    return Leak(name=name, seed=seed, images=images, **fields, **told, **more)


FOUND = Leaks(
    made="2 cores",
    data="eyes",
    leaks=(
        leak("split.features", SOME, reproduced="split"),
        leak("split.features", Counted(k=310, n=512, low=0.56, high=0.65), 1, reproduced="split"),
        leak("focal-blind.server", NONE, reproduced="blind"),
    ),
)


def test_what_beats_its_baselines_is_bold_and_none_is_at_most() -> None:
    text = drawn.markdown(FOUND)
    assert "**300 of 512 (54.0 to 63.0 %)**" in text and "300 to 310 (2 seeds)" in text
    assert "| 0 of 512 (at most 0.75 %) (no evidence" in text and text.count("8 of 512") == 2


def test_a_count_within_chance_of_the_mean_image_beats_nothing() -> None:
    assert leak("a.b", SOME).beats
    assert not leak("a.b", Counted(k=12, n=512, low=0.0134, high=0.04)).beats


def test_a_row_whose_attack_works_nowhere_says_that_it_is_no_evidence() -> None:
    def told(*leaks: Leak) -> str:
        return drawn.markdown(Leaks(made="", data="", leaks=leaks))

    blind = leak("focal-blind.server", NONE).model_copy(update={"teeth": "all.keys"})
    assert "was not run" in told(blind)
    assert "no evidence: all.keys found nothing either" in told(blind, leak("all.keys", NONE))
    assert "evidence" not in told(blind, leak("all.keys", SOME))


def test_pictures_are_drawn(tmp_path: Path) -> None:
    drawn.plot_leaks(FOUND, tmp_path / "leaks.png")
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    drawn.plot_pairs(FOUND.leaks[0], images, images, tmp_path / "pairs.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("leaks.png", "pairs.png"))


def test_leaks_stand_beside_accuracy_and_bytes(tmp_path: Path) -> None:
    assert write_beside(tmp_path) is None
    rows = [
        {"method": m, "title": m, "auroc": a, "seconds": 3.0, "institution_bytes": {"up": 2e6, "down": 1e6}}
        for m, a in (("split", 0.775), ("blind", 0.771), ("alone", 0.75))
    ]
    (tmp_path / "results.json").write_text(json.dumps({"tables": {"ocular": {"parts": {"patient-3": {"rows": rows}}}}}))
    (tmp_path / FOLDER).mkdir()
    write(FOUND, tmp_path / FOLDER / FILE)
    page = write_beside(tmp_path)
    assert page is not None
    text = page.read_text()
    assert "| split | 0.7750 | 3 | 3 | 310 of 512" in text and "| blind | 0.7710 | 3 | 3 | 0 of 512" in text
    assert "attacks on eyes" in text and "alone" not in text and (tmp_path / "leaks.png").exists()


def test_leaks_are_read_back(tmp_path: Path) -> None:
    assert read_leaks(tmp_path) is None
    write(FOUND, tmp_path / FILE)
    assert read_leaks(tmp_path) == FOUND
