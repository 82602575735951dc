"""Trainable networks of our own, as plain modules."""
