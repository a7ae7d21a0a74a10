"""Does the ancestry check name every pair that does not belong together, and no other?"""
