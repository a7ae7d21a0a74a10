"""Recipes, measurements and plans: frozen records, read and written as YAML and JSON."""
