"""The output folder: its weights, side files and record."""
