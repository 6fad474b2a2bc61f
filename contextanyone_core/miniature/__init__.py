"""The shipped, trained miniature: weights and their card."""
