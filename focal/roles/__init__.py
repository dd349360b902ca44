"""Who does what, and when. Each role is a script that reads from top to bottom; its journal makes it durable.

A role never branches on "where was I": after a restart it runs again from the top. Whatever it made before (nonces, key
contributions, ciphertexts, shares, signatures) comes back from its journal with the same bytes, and what the server
has is not sent again, so it arrives within seconds where it was stopped.

::

    party        what all roles share: say, hear, commit and reveal, the run id
    institution  features, secure sum, projection, encryption, result
    custodian    key share, refresh, release
    server       relay, joint keys, encrypted training
    local        all of them on one machine
"""
