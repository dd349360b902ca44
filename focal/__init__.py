"""FOCAL: hospitals train one diagnostic model together on encrypted activations.

Reading order: :mod:`focal.config` (what a run is), :mod:`focal.heads.linear.layout` (where numbers sit in slots),
:mod:`focal.heads.linear.engine` (training on ciphertexts), :mod:`focal.protocols` (who does what, and when).
"""

__version__ = "0.2.0"
