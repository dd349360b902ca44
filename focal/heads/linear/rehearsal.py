"""The blind head and all its custodians in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from focal.ckks.evaluator import RealOrComplex
from focal.heads.linear.engine import Block, Engine, rate
from focal.heads.linear.layout import Layout
from focal.heads.linear.twin import Scalars
from focal.heads.masks import OwnerMasks
from focal.heads.moves import Ciphertext
from focal.heads.rehearsal import AnyRehearsal

Array = NDArray[np.float64]


class Rehearsal(AnyRehearsal[Layout]):
    """A rehearsal with encrypted rows and an engine over them."""

    sharing = 1
    """Institutions that fill shared blocks together, all with about as many rows."""

    @property
    def counts(self) -> dict[str, int]:
        """Institution -> how many rows it has, in their order."""
        edges = np.linspace(0, self.layout.rows, self.sharing + 1).astype(int)
        return {str(i): int(n) for i, n in enumerate(self.layout.owners or np.diff(edges))}

    def block(self, x: Array, targets: Array, b: int, scalars: Scalars) -> Block:
        """Block b of all rows, encrypted under the joint key: of every institution that has rows there, masked."""
        layout, counts = self.layout, self.counts
        table, masks = layout.row_table(counts), OwnerMasks(self.scheme, layout, rate(layout, scalars))
        first = dict(zip(counts, np.cumsum([0, *counts.values()]), strict=False))

        def uploaded(
            what: str, values: Array, slots: Callable[[Array], RealOrComplex]
        ) -> Iterator[tuple[str, Ciphertext]]:
            for name, owned in table.items():
                if b in layout.touched(*owned):
                    own = values[first[name] : first[name] + counts[name]]
                    message = slots(layout.block_of(own, owned[0], b))
                    yield name, self.encrypt(message, layout.chunk_limbs(what))

        def data(g: int, h: int) -> Ciphertext:
            return masks.data(uploaded("data", x, lambda rows: layout.data_slots(rows, g, h)), table, b, g)

        def target(u: int) -> Ciphertext:
            return masks.targets(uploaded("target", targets, lambda rows: layout.target_slots(rows, u)), table, b, u)

        giants, babies, groups = range(layout.giants), range(layout.babies), range(layout.class_groups)
        return Block([[data(g, h) for h in babies] for g in giants], [target(u) for u in groups])

    def engine(self, x: Array, targets: Array, scalars: Scalars) -> Engine:
        """An engine over rows ``x`` (n, R) and ``targets`` (n, C) = 1/2 - y."""
        blocks = list(self.pool.map(lambda b: self.block(x, targets, b, scalars), range(self.layout.blocks)))
        return Engine(self.scheme, self.layout, scalars, blocks.__getitem__, self.threads)
