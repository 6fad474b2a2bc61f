"""From pictures and prompts to a clip: loading, the pipeline, VACE, the domain check."""
