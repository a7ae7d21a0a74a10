"""Rules that make one task vector of several, where that is not their weighted sum, one file each.

A combination is a function of the stacked task vectors theta_i - theta_0 of one parameter, float32 of shape
(checkpoints, ...), which it may write into, and of the checkpoints' ``weights``. It returns one task vector of the
parameter's shape; the merge multiplies it by alpha, masks it if the plan says so and adds it to theta_0. Keyword-only
parameters are its options; two names are filled in by the arithmetic: ``key`` (seed and parameter name, for rules that
draw) and ``thinned`` (whether entries may be left out: not of a scalar, nor of batch norm's statistics).
"""
