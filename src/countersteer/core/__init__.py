"""Frozen data and errors that every other layer speaks in. Nothing here imports torch."""
