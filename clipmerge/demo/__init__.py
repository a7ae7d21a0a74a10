"""The demo's images and models."""
