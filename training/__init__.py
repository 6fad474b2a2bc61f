"""The headless trainer. It imports the core only."""
