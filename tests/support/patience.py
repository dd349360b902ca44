"""How long tests wait for what takes seconds: long enough for a busy machine, short of pytest's own limit."""

PATIENCE = 300.0
