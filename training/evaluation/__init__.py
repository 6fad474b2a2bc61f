"""What training/evaluate.py measures, one module per idea."""
