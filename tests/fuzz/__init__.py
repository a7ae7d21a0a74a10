"""Readers fed with damaged and hostile files: ``python -m tests.fuzz --minutes 60``; a minute of it is a test."""
