"""The interactive protocol's roles: what differs from the blind protocol's, step by step.

::

    institution                      server                                custodians
    activations/t  --chunk-->        present/t: who is in
                                     forward            open/t/logits -->  limits, lockstep, shares sealed to each owner
    own logits    <---------------------------------------------------------------
    derivatives/t  --chunk-->        answered/t: who is still in
                                     backward        open/t/gradients -->  likewise
                                                     refresh/t/weights --> likewise
    own gradients <---------------------------------------------------------------
    lower step                       step/t: a link of the chain

    every ``average_every`` steps       average/r/list -> signed by each listed one -> secure sum -> average/r/closed

Keys, run id, refresh, ledger and release are those of the blind protocol.
"""
