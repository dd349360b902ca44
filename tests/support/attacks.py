"""Parties that break the protocol, as real processes: this side runs inside the hostile process,
before focal's own ``main``.

::

    victims (honest processes) <==CURVE==> hub of a LyingServer
                                             +-- its board: what was really posted
                                             +-- its lies:  (reader, sender, topic) -> what the reader is shown
                                             +-- puppets:   members in league with it, whose keys it has

A :class:`LyingServer` takes no part in the run of its own accord: it relays, loses every ``abort`` (so that each victim
must find out by itself), and lies. It can sign for its puppets, never for a victim, except what a victim would have
signed in another run. Liars among the other members are the functions below: each replaces one method of a role.
``stages.py`` is the tests' side.
"""

from __future__ import annotations

from attacks_keys import *  # noqa: F403
from attacks_rows import *  # noqa: F403
from attacks_shares import *  # noqa: F403
from lying import *  # noqa: F403
