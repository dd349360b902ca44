"""ZeroMQ between the server and everybody else. Parties only dial out; the server knows who is calling.

::

    Link (institution, custodian)                              Hub (server)
    caller's threads --+                                       +-- board: post, wait
       post wait have  |   control: DEALER ====CURVE====+      |
                       +-> I/O thread                   ROUTER-+-- blobs: have, put, get
       put get         |   bulk:    DEALER ====CURVE====+      |
    beat every 2 s ----+                                  ZAP -+-- allow-list: the manifest's keys

    request:  request id (8 bytes) | phase | header (msgpack) | payload
    reply:    request id           |         header           | payload

Control and bulk are two connections, so that a heartbeat never stands behind a long send. A request carries an id
and may be repeated: every handler gives the same answer twice. There is no time limit on a request. The server
counts as alive while it answers heartbeats; when the connection comes back, or after 30 s of silence, what is
unanswered is sent again, except pieces of a blob: there the sender first asks how much has arrived.
"""

from focal.net.hub import Hub
from focal.net.link import Link

__all__ = ["Hub", "Link"]
