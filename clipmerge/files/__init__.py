"""Files on disk: reading, hashing, staging and writing."""
