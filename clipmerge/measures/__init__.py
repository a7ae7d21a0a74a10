"""Measurements of each layer's behaviour, one file per measure.

A measure is a function of the `Objective` that returns `Measurements`; its keyword-only parameters
are its options. A statistic is computed per batch, and averaged over images. It says how it is to
be read: whether it is signed, its unit, and the heading of its column in the report. No other file
needs to know about a new measure.
"""
