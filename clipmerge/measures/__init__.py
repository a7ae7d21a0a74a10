"""Measurements of each layer's behaviour, one file per measure.

A measure is a function of the `Objective` that returns `Measurements`; its keyword-only parameters
are its options. Statistics are computed per batch (so m-sharpness has m = batch size) and averaged
over images. A `Statistic` carries its interpretation: whether it is signed, its unit, and the
heading of its column in the report. No other file needs to know about a new measure.
"""
