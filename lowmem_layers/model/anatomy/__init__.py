"""Anatomy: finding the sublayers of a model, removing them, and driving them one at a time."""
