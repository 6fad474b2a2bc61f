"""Generation of clips from pictures and prompts: loading, the pipeline, VACE, the domain check."""
