"""Rules that combine several task vectors other than by their weighted sum, one file per rule.

A combination is a function of the stacked task vectors theta_i - theta_0 of one parameter, float32
of shape (checkpoints, ...), which it may write into, and of the checkpoints' ``weights``. It
returns one task vector of the parameter's shape; the merge multiplies it by alpha, masks it if the
plan says so and adds it to theta_0. Keyword-only parameters are its options. The arithmetic fills
in two names: ``key`` (seed and parameter name, for random rules) and ``thinned`` (whether entries
may be dropped: not in a scalar or in batch norm statistics).
"""
