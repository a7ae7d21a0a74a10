"""How each layer behaves, one file a measure.

A measure is a function of the `Objective` that returns `Measurements`; its keyword-only parameters are its
options. Statistics are taken a batch (so m-sharpness has m = batch size) and averaged over images.
"""
