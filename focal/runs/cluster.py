"""A test of a party's own cluster before a run needs it."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from focal.config import CkksConfig, LocalConfig
from focal.errors import FocalError
from focal.extras import require
from focal.manifest import Manifest
from focal.net.store import Blobs
from focal.telling import Say


def check_cluster(mine: LocalConfig, local: Path, m: Manifest | None, say: Say) -> None:
    """Print the nodes of the cluster that the local file names, and check each. ``m``: whose layout they must have the
    memory for.

    Raises :class:`FocalError` naming the first thing that is wrong, on which node, and the way out.
    """
    if mine.compute != "ray":
        raise FocalError(f"{local}: it says compute: {mine.compute}", hint="write compute: ray to use a cluster")
    require("ray", "focal cluster check")
    from focal.cluster.nodes import Cluster
    from focal.heads.linear.demand import worker_bytes
    from focal.protocols import of

    if m is not None and of(m).joint:
        raise FocalError(f"'{m.name}' is no blind run: a cluster takes the steps of blind runs only")
    blobs = Blobs(Path(mine.state).absolute() / "blobs")
    there = blobs.put(b"focal cluster check")
    file = blobs.folder / there[:2] / there[2:]
    cluster = Cluster(mine.ray_address, mine.threads or os.cpu_count() or 1)
    try:
        say(f"{cluster.name}: turns away who has no token")
        params = m.ckks if m is not None else CkksConfig()
        found = cluster.nodes(params, file)
        for node in found:
            say(f"  {node.describe()}")
        need = None
        if m is not None:
            need = functools.partial(worker_bytes, of(m).plan.layout(m), int(mine.memory_gb * 1e9))
        nodes = cluster.checked(found, params, file, need)
    finally:
        cluster.close()
    needed = f", of which the layout needs {need(len(nodes)) / 1e9:.1f} GB on each" if need is not None else ""
    cores, least = sum(n.cores for n in nodes), min(n.memory for n in nodes)
    say(f"{len(nodes)} node(s), {cores} cores, {least / 1e9:.1f} GB at least{needed}: the same limbs everywhere")
