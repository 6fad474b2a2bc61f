"""Evidence: the ablations of the paper by one command. Imports the core and what the trainer has for the world."""
