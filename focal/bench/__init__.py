"""Benchmarks: figures measured on this machine, beside their targets. ``focal bench NAME`` is one module each.

::

    head         an encrypted training step of the blind head, in one process
    joint        a joint step of interactive training, in one process (`focal bench interactive`)
    refresh      what a refresh costs beside its arithmetic, in real processes
    step         a step over rows streamed from disk, through a server's code
    scale        unit costs from `step` and `refresh`, and what runs larger than this machine would take
    sockets      joint steps over sockets, encrypted and in plaintext (`focal bench split`)
    gpu          what a GPU at hand does for institutions
    everything   `focal bench all`: layouts of the head, the joint step, then whole runs on the data here

Nothing here is asserted; a shared machine is noisy, so ours and a reference are interleaved and medians are printed.
"""
