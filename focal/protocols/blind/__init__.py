"""The blind protocol's roles: what differs from the interactive one's.

::

    institution                     server                                   custodians
    upload/commit, then upload      adds the ciphertexts up to blocks        uploads/accepted: the same lists everywhere
      --chunks-->
    (may go offline)                every step: refresh/t/... -->            shares; with lockstep only for own limbs
                                    step/t: a link of the chain              (focal.protocols.common.custodian)
    model  <--sealed shares--------------------------------------------      release of the last weights
"""
