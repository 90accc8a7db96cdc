"""Labeled texts and instructions: read, check, split."""
