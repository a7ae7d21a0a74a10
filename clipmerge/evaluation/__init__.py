"""Accuracy of checkpoints and of points between them."""
