"""Files on the disk: read, hashed, staged and written."""
