"""Processor seconds of a training step on Ray workers over those of threads, in one run: the machine may be busy.

    PYTHONPATH=.:tests/support python tests/support/spread_cost.py --rows 16384 --features 64 --class-lanes 8 --nodes 2

With ``--nodes`` each worker is on a Ray node of its own, all of them on this machine; else all are on one. The workers'
own seconds and all of them, the driver's included (it combines refreshes in both cases: that is taken off what threads
are charged for, and off the driver's). The first step has no forward pass.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_TOKEN", "ab" * 32)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import focal.cluster  # noqa: E402, F401  (before ray)

# isort: split
import ray  # noqa: E402
from ray.cluster_utils import Cluster as Nodes  # noqa: E402
from spread import Recorded  # noqa: E402

from focal.cluster.nodes import Cluster  # noqa: E402
from focal.cluster.shards import RayShards  # noqa: E402
from focal.config import CkksConfig  # noqa: E402
from focal.heads.linear.cost import layout_for  # noqa: E402
from focal.heads.linear.engine import Engine, Shards  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 8192), ("features", 64), ("classes", 8), ("class-lanes", 8), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=0)
    a = parser.parse_args()
    layout = layout_for(8192, a.features, a.classes, a.rows, a.class_lanes, 1, (a.rows,))
    print(json.dumps({"blocks": layout.blocks, "groups": layout.class_groups, "B": layout.babies, "G": layout.giants}))
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(layout, 3, Path(folder))
        own = recorded.job.shard(1, layout.blocks)
        list(map(own.block, range(layout.blocks)))
        expected, alone = steps(recorded, own, lambda: 0.0, a.steps)
        there = nodes(a.nodes) if a.nodes else None
        cluster = Cluster(there.address, 1) if there else Cluster(None, a.workers)
        found = cluster.checked(cluster.nodes(CkksConfig()), CkksConfig(), None)
        per_node = 1 if there else a.workers
        shards = RayShards(cluster, found, recorded.job, layout, own.scheme, lambda n: 0, print, per_node)
        print(json.dumps({"nodes": len(found), "blocks of each worker": [len(seat.blocks) for seat in shards.seats]}))

        def theirs() -> float:
            return sum(ray.get([seat.actor.seconds.remote() for seat in shards.seats]))

        steps(recorded, shards, theirs, 1)  # blocks are read
        digests, spread = steps(recorded, shards, theirs, a.steps)
        for i, (one, many) in enumerate(zip(alone, spread, strict=True)):
            said: dict[str, Any] = {"step": i, "threads": one, "ray": many}
            said["workers_ratio"] = round(many["workers"] / one["driver"], 2)
            said["all_ratio"] = round((many["workers"] + many["driver"]) / one["driver"], 2)
            print(json.dumps(said))
        print(json.dumps({"same_limbs": digests == expected}))
        shards.close()
        if there:
            there.shutdown()


def nodes(count: int) -> Any:
    """So many Ray nodes of one processor on this machine."""
    own = {"num_cpus": 1, "object_store_memory": 1 << 28}
    there = Nodes(initialize_head=True, head_node_args={**own, "include_dashboard": False})
    for _ in range(count - 1):
        there.add_node(**own)
    return there


def steps(
    recorded: Recorded, shards: Shards, theirs: Any, count: int
) -> tuple[list[list[str]], list[dict[str, float]]]:
    """Digests, and seconds of each step: wall, of this process without refreshes, of the workers."""
    own = [0.0, 0.0]

    def refresh(items: list[str], ciphertexts: list[Any]) -> list[Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        out = recorded.refresh(items, ciphertexts)
        own[0] += time.perf_counter() - wall
        own[1] += time.process_time() - cpu
        return out

    scheme = recorded.run.scheme
    engine = Engine(scheme, recorded.layout, recorded.scalars, lambda b: None, 1, shards)  # type: ignore[arg-type,return-value]
    weights, digests, seconds = recorded.weights(), [], []
    for step in range(count):
        own[:] = [0.0, 0.0]
        wall, cpu, workers = time.perf_counter(), time.process_time(), theirs()
        weights = engine.step(step, weights, refresh)
        seconds.append(
            {
                "wall": round(time.perf_counter() - wall - own[0], 2),
                "driver": round(time.process_time() - cpu - own[1], 2),
                "workers": round(theirs() - workers, 2),
            }
        )
        digests.append(recorded.digests(weights))
    return digests, seconds


if __name__ == "__main__":
    main()
