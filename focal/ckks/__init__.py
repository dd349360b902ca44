"""Everything that imports OpenFHE, and nothing that opens a socket.

::

    context   one CKKS context and its byte templates        keys      N-of-N keys, round by round
    wire      limbs <-> checked, canonical bytes             refresh   shares of a collective refresh
    ring      arithmetic on limbs in numpy                   release   smudged opening of the final weights
    layout    where rows, features, classes sit in slots     ledger    shares that were given, for ever
    plan      which layout, and what it costs                engine    the encrypted training steps
    rehearsal all custodians in one process, for tests       twin      the same steps on plaintext
    interactive   one joint step of split learning (kernel and twin; no role uses it yet)
"""
