"""What a finished run shows: pictures and pages of its numbers (:mod:`focal.measure`), and the table in the terminal."""
