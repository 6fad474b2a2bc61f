"""Running stages over sources in processes, with parts on disk."""
