"""Readers fed with damaged and hostile files."""
