"""Rules that pick which entries of a layer's change are kept, one file each.

A mask is a function of the *change* that a parameter is about to get, ``alpha * task_vector`` in float32, any
shape, and may write into it. It returns the change that is really made, in the same shape; writing zeros leaves
those entries zero-shot. Keyword-only parameters are the options a recipe or a plan may set. The three names
``theta_0`` (the zero-shot parameter in float32), ``score`` (one saliency per entry) and ``key`` (seed and
parameter name, for random masks) are filled in by the arithmetic for the masks that ask for them.
"""
