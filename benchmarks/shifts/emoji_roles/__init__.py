"""Emoji with the vendors in other roles: a second split of the same packages."""
