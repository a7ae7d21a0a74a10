"""The merge arithmetic: one tensor, and the stream of all of them."""
