"""What a finished run shows: pictures and pages of its numbers (:mod:`focal.measure`), the table in the terminal."""
