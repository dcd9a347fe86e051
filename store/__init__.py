"""Segments, generations and the pointer to the current one: knows vectors, no model and no network."""
