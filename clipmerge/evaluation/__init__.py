"""Accuracy and recall of checkpoints and merges, and the verdict on a merge."""
