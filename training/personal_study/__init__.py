"""How well a personal model shows its person and leaves the rest alone: arms on the miniature's test characters."""
