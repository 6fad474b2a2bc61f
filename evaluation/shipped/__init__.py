"""The shipped model on test characters of the world: what its knobs do, and what it stands."""
