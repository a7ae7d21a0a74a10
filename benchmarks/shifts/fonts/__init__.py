"""Characters in many typefaces: a distribution shift that trains on a CPU."""
