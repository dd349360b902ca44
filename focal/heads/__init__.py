"""Encrypted algorithms: what the upper segment computes on ciphertexts, each beside its plaintext twin.

::

    linear      the blind head: layout, engine, twin, cost        moves      what every head is made of
    joint       one joint step of split learning: layout,         masks      what an owner may write, what may be opened
                engine, twin, limits                              released   weights from opened slots, and their error
    two_layer   two layers from scratch, a baseline               rehearsal  a head and all custodians in one process

An engine gets ciphertexts and a callable that refreshes; it has no network, no clock and no randomness, so that server,
verifier and auditor run the same code.
"""
