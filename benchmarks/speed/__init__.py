"""The cost of merging, measuring and starting up, beside the cost of the disk."""
