"""Processor seconds of a training step on Ray workers over those of threads, in one run: the machine may be busy.

    PYTHONPATH=tests/support python tests/support/spread_cost.py --rows 8192 --features 64 --class-lanes 8 --workers 2

The workers' own seconds and all of them, the driver's included (it combines refreshes in both cases: that is taken off
what threads are charged for, and off the driver's). The first step has no forward pass.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import focal.cluster  # noqa: F401  (before ray)

# isort: split
import ray
from spread import Recorded

from focal.cluster.nodes import Cluster
from focal.cluster.shards import RayShards
from focal.config import CkksConfig
from focal.heads.linear.cost import layout_for
from focal.heads.linear.engine import Engine, Shards


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("rows", 8192), ("features", 64), ("classes", 8), ("class-lanes", 8), ("workers", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=3)
    a = parser.parse_args()
    layout = layout_for(8192, a.features, a.classes, a.rows, a.class_lanes, 1, (a.rows,))
    print(json.dumps({"blocks": layout.blocks, "groups": layout.class_groups, "B": layout.babies, "G": layout.giants}))
    with tempfile.TemporaryDirectory() as folder:
        recorded = Recorded(layout, 3, Path(folder))
        own = recorded.job.shard(1, layout.blocks)
        list(map(own.block, range(layout.blocks)))
        expected, alone = steps(recorded, own, lambda: 0.0, a.steps)
        cluster = Cluster(None, a.workers)
        shards = RayShards(
            cluster, cluster.nodes(CkksConfig()), recorded.job, layout, own.scheme, lambda n: 0, print, a.workers
        )

        def theirs() -> float:
            return sum(ray.get([seat.actor.seconds.remote() for seat in shards.seats]))

        steps(recorded, shards, theirs, 1)  # blocks are read
        found, spread = steps(recorded, shards, theirs, a.steps)
        for i, (one, many) in enumerate(zip(alone, spread, strict=True)):
            said: dict[str, Any] = {"step": i, "threads": one, "ray": many}
            said["workers_ratio"] = round(many["workers"] / one["driver"], 2)
            said["all_ratio"] = round((many["workers"] + many["driver"]) / one["driver"], 2)
            print(json.dumps(said))
        print(json.dumps({"same_limbs": found == expected}))
        shards.close()


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
