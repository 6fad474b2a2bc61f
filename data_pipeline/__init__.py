"""From raw video to training pairs: stages that score, an engine that resumes, decisions as a second pass."""
