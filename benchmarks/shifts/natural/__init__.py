"""Targets with natural shifts, from public repositories of pictures."""
