"""Signals at random moments of commands: ``python -m tests.signals --count 200``; a few of them are a test."""
