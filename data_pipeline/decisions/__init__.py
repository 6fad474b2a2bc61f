"""From scores to a manifest: thresholds, duplicates, splits, the account."""
