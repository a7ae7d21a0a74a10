"""How coefficients and masks are chosen, one file a method.

A method is a function of a `Task` that returns a `Decision`; its keyword-only parameters are its options.
"""
