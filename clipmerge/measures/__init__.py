"""Measures, one per file.

A measure is a function of an `Objective` that returns `Measurements`; its keyword-only parameters
are its options. A statistic has one value per layer, the mean over images. It also has a unit, a
heading for its column in the report, and a flag for meaningful negative values. A new measure needs
no change in another file.
"""
