"""The character world: a procedural renderer of little people."""
