"""What the shared key may do, once each: evaluation keys, collective refreshes, openings, the release.

::

    keys        N-of-N keys, round by round                  release     smudged opening of the final weights
    refresh     shares of a collective refresh; the guard    opening     smudged opening to one owner during training
    ledger      shares that were given, for ever             consortium  all custodians in one process
    projections range check of what institutions upload      integer_gaussian  what hides an institution's projections

Every operation takes the limbs of *a key share* and does not care how the secret is shared (Mouchet et al.,
PoPETs 2021): another sharing of it is another way to get these limbs.
"""
