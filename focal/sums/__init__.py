"""Secure sums of integers: everybody learns the total, nobody a summand, the server neither.

::

    float64 --fixed.encode--> uint64 --masked.MaskedSum--> masked bytes --server--> all masked bytes
    float64 <--fixed.decode-- uint64 <-------------------- opened by every participant for itself

Who need not be there at one time adds up through custodians: :mod:`focal.sums.entrusted`.

Used for pooled moments, parameter averages, histograms and counts. It works without the CKKS key on purpose:
a sum opened under the training key can be made to spell out the key.
"""
