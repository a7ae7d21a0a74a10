"""Measures, one per file.

A measure is a function of an `Objective` that returns `Measurements`; its keyword-only parameters
are its options. A statistic has one value per layer, the mean over images. It also has what a
reader needs: whether it is signed, its unit, and the heading of its column in the report. A new
measure needs no change in another file.
"""
