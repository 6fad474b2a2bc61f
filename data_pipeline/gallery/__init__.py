"""Static pages over a run's rows: what was kept and what was dropped, with buttons to overrule it."""
