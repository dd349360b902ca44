"""Two Ray nodes on this machine, one of which is gone in the middle of a step; a process of its own, for Ray is one a
process. Prints what happened as JSON.

    PYTHONPATH=. python tests/support/losing_node.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_TOKEN"] = "ab" * 32
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

import focal.cluster  # noqa: E402, F401  (before ray)

# isort: split
from ray.cluster_utils import Cluster as Nodes  # noqa: E402
from spread import Recorded  # noqa: E402

from focal.cluster.nodes import Cluster  # noqa: E402
from focal.cluster.shards import RayShards  # noqa: E402
from focal.config import CkksConfig  # noqa: E402
from focal.heads.linear.cost import layout_for  # noqa: E402
from focal.heads.linear.engine import Engine  # noqa: E402

LAYOUT = layout_for(8192, 32, 6, 5000, 4, 1, (5000,))
GB = 1 << 30


class Losing(RayShards):
    """Loses a node as soon as its worker was asked for the sums of the second step."""

    steps = 0
    nodes_there: Any = None
    other: Any = None

    def backward(self, logits: Any, residuals: Any) -> Any:
        self.steps += 1
        return super().backward(logits, residuals)

    def _got(self, refs: list[Any]) -> list[Any]:
        if self.steps == 2 and self.other is not None:
            time.sleep(0.05)  # in the middle of the products
            self.nodes_there.remove_node(self.other, allow_graceful=False)
            self.other = None
        return super()._got(refs)


def main() -> None:
    common = {"num_cpus": 1, "object_store_memory": GB // 4, "include_dashboard": False}
    there = Nodes(initialize_head=True, head_node_args=common)
    other = there.add_node(num_cpus=1, object_store_memory=GB // 4)
    told: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(LAYOUT, 3, Path(folder))
        own = recorded.job.shard(1, LAYOUT.blocks)

        def steps(engine: Engine) -> list[list[str]]:
            weights, out = recorded.weights(), []
            for step in range(2):
                weights = engine.step(step, weights, recorded.refresh)
                out.append(recorded.digests(weights))
            return out

        expected = steps(Engine(own.scheme, LAYOUT, recorded.scalars, own.block, 1, own))
        cluster = Cluster(there.address, 1)
        nodes = cluster.checked(cluster.nodes(CkksConfig()), CkksConfig(), None)
        shards = Losing(cluster, nodes, recorded.job, LAYOUT, own.scheme, lambda n: GB // 4, told.append)
        before = sorted(list(seat.blocks) for seat in shards.seats)
        shards.nodes_there, shards.other = there, other
        began = time.monotonic()
        same = steps(Engine(own.scheme, LAYOUT, recorded.scalars, own.block, 1, shards)) == expected
        print(
            json.dumps(
                {
                    "same": same,
                    "before": before,
                    "after": [seat.blocks for seat in shards.seats],
                    "told": told,
                    "seconds": round(time.monotonic() - began, 1),
                }
            )
        )
        sys.stdout.flush()
        shards.close()
        there.shutdown()


if __name__ == "__main__":
    main()
