"""Rules that select the entries of a change to keep, one file per rule.

A mask is a function that gets the *change* of a parameter and returns the change to make, in the
same shape; where it is zero, entries stay zero-shot. It may write into its argument. The mask of a
layer gets ``alpha * task_vector``; a combination masks each task vector. Both are float32.

Keyword-only parameters are options of a recipe or a plan, except two that the arithmetic fills in:
``score`` (one number per entry) and ``key`` (seed and parameter name, for random masks).
"""
