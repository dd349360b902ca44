"""The blind head: a linear model on columns that were encrypted once.
Begin with :mod:`focal.heads.linear.layout`, then ``engine``."""
