"""What an institution can still upload that is no row: a message that it knows, of any size up to 2^127 a coefficient.

(0, C), a copy, a c1 of somebody's choice: none of these has a form any more (tests/unit/custody/test_inputs.py). A
message that is too large for a step meets the guard. And why uploads are closed before any custodian contributes,
performed with the order reversed.
"""

from __future__ import annotations

import numpy as np
import pytest

from focal.ckks import codec, ring
from focal.custody import inputs, refresh
from focal.errors import FocalError
from focal.heads.linear.engine import Block, Engine, rate, zero_weights
from focal.heads.linear.layout import DATA_LIMBS, TARGET_SCALE, Layout
from focal.heads.linear.rehearsal import Rehearsal
from focal.heads.linear.twin import Scalars
from focal.heads.masks import UPLOADED_LIMBS, OwnerMasks

LAYOUT = Layout(8192, 32, 1, 8192, 1, 1, 8)
SCALARS = Scalars.derive(3, 1.0, 0.1, LAYOUT.rows)


@pytest.fixture(scope="module")
def run() -> Rehearsal:
    return Rehearsal(LAYOUT, custodians=2, run="large messages")


@pytest.mark.parametrize(("bits", "refused"), [(126, True), (90, False)])
def test_the_guard_refuses_messages_beyond_its_bound(run: Rehearsal, bits: int, refused: bool) -> None:
    """One target holds 2^bits in its constant coefficient, the first data message is 1:
    the first gradient is that, times the rate."""
    scheme, ev, limbs = run.scheme, run.scheme.evaluator, UPLOADED_LIMBS
    large = ev.load([_constant(run, 1 << bits, limbs), scheme.zero(limbs)])
    target = ev.add(run.encrypt(np.zeros(1), limbs), large)
    one = ev.add(
        run.encrypt(np.zeros(1), DATA_LIMBS),
        ev.load([_constant(run, round(scheme.scale), DATA_LIMBS), scheme.zero(DATA_LIMBS)]),
    )
    data = [[one if g == h == 0 else ev.zero(DATA_LIMBS) for h in range(LAYOUT.babies)] for g in range(LAYOUT.giants)]
    factor = rate(LAYOUT, SCALARS)
    block = Block(data, [OwnerMasks(scheme, LAYOUT, factor).targets([("a", target)], {"a": (0, LAYOUT.rows)}, 0, 0)])
    limit, expected = refresh.guard(scheme, 2).limit, 2.0**bits * factor / TARGET_SCALE
    assert (expected > 4 * limit) == refused and (expected < limit / 4) == (not refused), (
        "the sizes are not on either side of the bound"
    )
    engine = Engine(scheme, LAYOUT, SCALARS, lambda b: block, 1)
    try:
        if refused:
            with pytest.raises(FocalError, match="the guard refuses what is to be refreshed"):
                engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)
        else:
            engine.step(0, zero_weights(scheme, LAYOUT), run.refresh)
    finally:
        engine.close()


def test_rows_that_were_chosen_after_the_contributions_would_show_the_secret(run: Rehearsal) -> None:
    """Why all lists are signed first: y = -B, known to everybody by then, leaves c0 = 0 and the phase a s."""
    scheme, item, lists = run.scheme, "late", "00" * 32
    secrets = {str(i): share for i, share in enumerate(run.secrets)}
    a = inputs.public_random(scheme, run.run_id, lists, item, DATA_LIMBS)
    masks = {name: inputs.mask(bytes(32), lists, f"{item}/{name}", scheme.n) for name in secrets}
    given = [(name, inputs.contribution(scheme, share.limbs, a, [masks[name]])) for name, share in secrets.items()]
    early = inputs.masked(scheme, np.zeros(scheme.n, np.int64), list(masks.values()))
    (c0, _) = inputs.combine(scheme, a, [("honest", early)], given)
    s = ring.total([share.limbs[:1] for share in secrets.values()], scheme.moduli[:1])[0]
    q, root = scheme.moduli[0], scheme.roots[scheme.moduli[0]]
    honest = ring.centred(ring.inverse_ntt(ring.add(c0[0], ring.multiply(a[0], s, q), q), q, root), q)
    assert np.abs(honest).max() < 2**7, "an early message is followed by nothing but noise"
    words, coefficients = codec.unpack_masked(scheme, early, "honest"), ring.inverse_ntt(c0[0], q, root)
    sums = [int(low) + (int(high) << 64) - int(c) for (low, high), c in zip(words, coefficients, strict=True)]
    late = np.array([[v & (1 << 64) - 1, v >> 64] for v in sums], np.uint64)
    (c0, c1) = inputs.combine(scheme, a, [("late", codec.pack_masked(scheme, late))], given)
    assert not c0[0].any() and np.array_equal(c1[0], a[0]), "the phase is a s modulo q_0, whatever s is"


def _constant(run: Rehearsal, value: int, limbs: int) -> list[ring.Limb]:
    return [np.full(run.scheme.n, value % q, np.uint64) for q in run.scheme.moduli[:limbs]]
