"""Rules that select the entries of a layer's change to keep, one file per rule.

A mask is a function of a parameter's intended *change*, ``alpha * task_vector`` in float32 and any
shape, which it may write into. It returns the change to make, in the same shape; zeros leave
entries zero-shot. Keyword-only parameters are options of a recipe or a plan. The arithmetic fills
in three names for the masks that have them: ``theta_0`` (the zero-shot parameter in float32),
``score`` (one saliency per entry) and ``key`` (seed and parameter name, for random masks).
"""
