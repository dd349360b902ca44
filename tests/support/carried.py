"""What noise trained weights carry into their release."""

from __future__ import annotations

import math

import numpy as np
from opened import Opened

from focal.ckks import ring
from focal.custody import release
from focal.heads.linear import twin
from focal.heads.linear.cost import layout_for
from focal.heads.linear.engine import zero_weights
from focal.heads.linear.layout import WEIGHT_SCALE
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars

STEPS = 5


def carried_noise(
    class_lanes: int, feature_lanes: int, rows: int, custodians: int, draws: int = 2, sharing: int = 0, degree: int = 3
) -> list[float]:
    """t of each of ``draws`` keys: root mean square over the coefficients of the noise that five steps leave in W'.

    The same rows are trained on under independent keys, encryptions and shares. What the outcomes have in common is the
    message, and the drift of FIXEDMANUAL, a fixed function of the plaintext; what is left to each is noise. (A mean of
    ``draws`` takes a part of each one's noise along, which the factor gives back.) ``sharing``: institutions that fill
    one shared block, 0 for a block of one's own.
    """
    outputs, features = (
        class_lanes,
        32 if class_lanes == 1 else 64,
    )  # k = 1: 512 copies, the most that any layout of this ring has
    rng = np.random.default_rng(7)
    x = np.hstack([np.clip(rng.standard_normal((rows, features - 1)), -3, 3), np.ones((rows, 1))])
    classes = (x @ rng.standard_normal((features, 2))).argmax(1)
    targets = 0.5 - np.eye(8)[classes][:, :outputs]
    eta = 1 / (float(np.linalg.eigvalsh(x.T @ x / rows)[-1]) / 4 + 0.1)
    scalars = Scalars.derive(degree, eta, 0.1, rows)
    layout = layout_for(8192, features, outputs, rows, class_lanes, feature_lanes, () if sharing else (rows,))
    found = []
    for draw in range(draws):
        run = Rehearsal(
            layout, custodians=custodians, threads=2, run=f"carried {class_lanes} {rows} {custodians} {draw}"
        )
        run.sharing = max(1, sharing)
        engine, carried = run.engine(x, targets, scalars), zero_weights(run.scheme, layout)
        for step in range(STEPS):
            carried = engine.step(step, carried, run.refresh)
        engine.close()
        found.append(Opened(run).coefficients(carried[0]).astype(float))
        own = layout.read_weights(ring.embed(found[-1] / run.scheme.scale)) / WEIGHT_SCALE
        trained = twin.train(x, targets, scalars, STEPS)[0][:, :class_lanes]
        assert np.abs(own - trained).max() < 1e-6, "these are not the trained weights"
        run.scheme.forget()
    noise = np.array(found) - np.mean(found, axis=0)
    return [float(t) for t in np.sqrt((noise**2).mean(axis=1) * draws / (draws - 1))]


def assert_carried_noise(
    class_lanes: int, feature_lanes: int, rows: int, custodians: int, sharing: int = 0, degree: int = 3
) -> None:
    """A quarter, at most, of the t = 2^14 that a release is smudged for: kappa is 34 at least."""
    found = carried_noise(class_lanes, feature_lanes, rows, custodians, sharing=sharing, degree=degree)
    who = (
        f"k = {class_lanes}, f = {feature_lanes}, n = {rows}, {custodians} custodians, "
        f"degree {degree}, {sharing} sharing"
    )
    print(f"trained weights, {who}: t = " + ", ".join(f"2^{math.log2(t):.1f}" for t in found))
    assert max(found) < release.CARRIED_NOISE / 4
