"""One HTML page of a run: curves, samples, configuration and record."""
