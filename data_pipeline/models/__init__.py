"""Stages that ask models: people, identity, masks, captions, edits, verification."""
