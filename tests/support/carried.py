"""What noise trained weights carry into their release."""

from __future__ import annotations

import math

import numpy as np
from conftest import Opened
from polynomials import coefficients, rms

from focal.custody import release
from focal.heads.linear import twin
from focal.heads.linear.cost import layout_for
from focal.heads.linear.engine import zero_weights
from focal.heads.linear.layout import WEIGHT_SCALE
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars


def assert_carried_noise(class_lanes: int, feature_lanes: int, rows: int, custodians: int) -> None:
    """t = 2^14 against what five steps leave in W': the decrypted polynomial minus the encoding of its own weights.

    Of the noise on the weights' own slots that difference shows the imaginary half only. The real half is as large (key switching,
    rounding and encryption prefer no phase), so sqrt(2) times the rest bounds the whole. The drift of FIXEDMANUAL is no
    noise: it is a fixed function of the plaintext.

    With 8 custodians three draws of the keys in a hundred carry more (SECURITY.md); the secret, and with it the noise, grows with the root
    of their number.
    """
    outputs, features = class_lanes, 32 if class_lanes == 1 else 64  # k = 1: 256 copies, the most that any layout of this ring has
    rng = np.random.default_rng(7)
    x = np.hstack([np.clip(rng.standard_normal((rows, features - 1)), -3, 3), np.ones((rows, 1))])
    classes = (x @ rng.standard_normal((features, 2))).argmax(1)
    targets = 0.5 - np.eye(8)[classes][:, :outputs]
    eta = 1 / (float(np.linalg.eigvalsh(x.T @ x / rows)[-1]) / 4 + 0.1)
    scalars = Scalars.derive(3, eta, 0.1, rows)
    layout = layout_for(8192, features, outputs, rows, class_lanes, feature_lanes)
    run = Rehearsal(layout, custodians=custodians, threads=2, run=f"carried {class_lanes} {rows} {custodians}")
    engine, carried = run.engine(x, targets, scalars), zero_weights(run.scheme, layout)
    for step in range(5):
        carried = engine.step(step, carried, run.refresh)
    engine.close()
    opened = Opened(run)
    own = layout.read_weights(opened.slots(carried[0]))
    assert np.abs(own / WEIGHT_SCALE - twin.train(x, targets, scalars, 5)[0]).max() < 1e-6, "these are not the trained weights"
    noise = opened.coefficients(carried[0]) - coefficients(layout.weight_slots(own, 0)) * run.scheme.scale
    t = 2**0.5 * rms(noise)
    bits = release.flooding_bits(t)
    who = f"k = {class_lanes}, f = {feature_lanes}, n = {rows}, {custodians} custodians"
    print(f"trained weights, {who}: t = 2^{math.log2(t):.1f}, flooding {bits:.1f} bits")
    assert t < release.CARRIED_NOISE * max(1.0, custodians / 3) ** 0.5
