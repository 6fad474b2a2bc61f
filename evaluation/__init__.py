"""Evaluation of claims: the paper's ablations and the user study. Imports the core and the trainer."""
