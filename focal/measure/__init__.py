"""What is counted and measured: numbers only. Pictures and pages of them are :mod:`focal.reporting`'s."""
