"""Emoji drawn by several vendors: a distribution shift that trains on a CPU."""
