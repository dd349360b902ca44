"""What a finished run shows: metrics with intervals, the result contract, plots, the table in the terminal."""
