"""Everything that imports OpenFHE, and nothing that opens a socket.

::

    scheme             one CKKS context and its byte templates
    evaluator          what is computed on ciphertexts without a secret
    openfhe_evaluator  the same by OpenFHE
    codec              limbs <-> checked, canonical bytes; the one place that encrypts
    ring               arithmetic on limbs in numpy
    integers           integers wider than a word, as limbs: comparison, exact division
    native             limbs in C, and the evaluator on them, where a compiler was at hand
    sampling           a custodian's randomness

``OMP_NUM_THREADS=1`` is set here, before any module of this package can import OpenFHE: the GIL is released during its
calls, so Python threads give the parallelism, and OpenMP inside several processes on one host is up to 30 times slower.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
