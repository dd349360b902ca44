"""A party's own cluster of machines, on Ray: what its threads compute with blocks, workers on several nodes compute.

::

    driver (server, verifying custodian, audit)        worker (one a node, threads inside)        the party's blobs
      holds W, asks for refreshes                        owns blocks                                (a shared folder)
      |-- W ---------------------------------------------> rotations of W, forward   <--- uploads of its blocks, once
      |<- logits, 3 limbs                                                            <--- joint keys, once
      |== refresh, between parties, as ever ==
      |-- refreshed logits of its blocks ----------------> residuals, products, summed over its blocks
      |                            worker to worker        a part of all workers' sums: added up, then relinearised
      |<- gradients, one a class group ------------------- and turned onto each other, from part to part
      |== refresh, between parties ==

Sums over blocks are added modulo q, which is exact, and everything that rounds comes after them: the limbs are those of
threads in one process, for any number of workers. The sums are scattered (each worker adds up a part of them), so no
machine ever holds all.

A worker is a function of its arguments and of content-addressed files. When one is lost, or its node, the driver starts
another one, or deals its blocks to the others, and makes the call again. What lies between two calls, weights and
refreshed logits, is with the driver: nothing is asked of another party again.

What workers get is what everybody may see who verifies a run: uploads, contributions, joint evaluation keys, and
ciphertexts. No key share ever leaves the custodian's process. But *whoever reaches a Ray port and has the token runs
code as the user who started Ray*. So: a cluster belongs to one party, has a network of its own and a token; one that
lets callers in without is refused; nothing of Ray is ever spoken between parties (SECURITY.md).

Ray is imported here and nowhere else, when a local file says ``compute: ray``.
"""

import os
import sys

if "ray" in sys.modules and os.environ.get("RAY_AUTH_MODE") != "token":
    raise RuntimeError("ray was imported before focal.cluster, and has settled that it shows no token")

# Ray reads these when it is imported. Without the second it would let in whoever finds the port.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"  # they are handled
