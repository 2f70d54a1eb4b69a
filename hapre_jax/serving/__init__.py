"""Trained methods that answer new films, here or elsewhere."""
