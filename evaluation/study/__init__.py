"""The user study: a static page of pairs of clips, and the analysis of its answers."""
