"""The blind head and all its custodians in one process."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from focal.heads.linear.engine import Block, Engine, chunk_limbs, rate
from focal.heads.linear.layout import Layout
from focal.heads.linear.twin import Scalars
from focal.heads.masks import OwnerMasks
from focal.heads.rehearsal import Rehearsal as AnyRehearsal

Array = NDArray[np.float64]


class Rehearsal(AnyRehearsal[Layout]):
    """A rehearsal with encrypted rows and an engine over them."""

    def block(self, x: Array, targets: Array, b: int, scalars: Scalars) -> Block:
        """Block b of all rows, encrypted under the joint key; with ``layout.owners`` the rows of whose block it is."""
        layout, limbs = self.layout, chunk_limbs("target")
        masks = OwnerMasks(self.scheme, layout, rate(layout, scalars))
        counts = {str(i): n for i, n in enumerate(layout.owners or (layout.rows,))}
        first = 0
        for n, owned in zip(counts.values(), layout.row_table(counts).values(), strict=True):
            if b in layout.touched(*owned):
                break
            first += n
        rows, wanted = (layout.block_of(values[first : first + n], owned[0], b) for values in (x, targets))
        places = [[(g, h) for h in range(layout.babies)] for g in range(layout.giants)]
        data = [[self.encrypt(layout.data_slots(rows, g, h), chunk_limbs("data")) for g, h in row] for row in places]
        uploaded = [self.encrypt(layout.target_slots(wanted, u), limbs) for u in range(layout.class_groups)]
        return Block(data, [masks.total({"": ct}, {"": owned}, b, u) for u, ct in enumerate(uploaded)])

    def engine(self, x: Array, targets: Array, scalars: Scalars) -> Engine:
        """An engine over rows ``x`` (n, R) and ``targets`` (n, C) = 1/2 - y."""
        blocks = list(self.pool.map(lambda b: self.block(x, targets, b, scalars), range(self.layout.blocks)))
        return Engine(self.scheme, self.layout, scalars, blocks.__getitem__, self.threads)
