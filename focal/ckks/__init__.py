"""Everything that imports OpenFHE, and nothing that opens a socket.

::

    context   one CKKS context and its byte templates        keys      N-of-N keys, round by round
    wire      limbs <-> checked, canonical bytes             refresh   shares of a collective refresh
    ring      arithmetic on limbs in numpy                   release   smudged opening of the final weights
    layout    where rows, features, classes sit in slots     ledger    shares that were given, for ever
    plan      which layout, and what it costs                engine    the encrypted training steps
    rehearsal all custodians in one process, for tests       twin      the same steps on plaintext
    interactive   one joint step of split learning      opening   what of it is opened to its owner
    network   two layers from scratch: plaintext rows, encrypted weights

``OMP_NUM_THREADS=1`` is set here, before any module of this package can import OpenFHE: the GIL is released during its calls, so
Python threads give the parallelism, and OpenMP inside several processes on one host is up to 30 times slower.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
