"""The privacy benchmark: what each party's view is worth to an attacker, for FOCAL and for what it is compared with.

::

    clients, bench   the systems: honest parties, and what leaves them      know everything
                 |   view, threat: what one party, or a coalition, gets     the only bridge
    attacks          imprint  inversion  april  features  membership        know a view, public images, batch sizes
                     coalition  ciphertexts
    scores           what counts as a leak, baselines, intervals            see claims and truth
    scenarios        which attack meets which view                          study: cells on disk, table, pictures

An attack maps a view to claims. :mod:`focal.attacks.scores` says what a leak is; docs/attacks.md has the results.
"""
