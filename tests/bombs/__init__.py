"""Files made to fill memory or to take for ever, at full size: ``python -m tests.bombs``; a test measures each."""
