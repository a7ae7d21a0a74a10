"""Recipes, measurements and plans: frozen records that are read and written as YAML and JSON."""
