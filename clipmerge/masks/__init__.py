"""Rules that select the entries of a change to keep, one file per rule.

A mask is a function of one parameter's *change* and returns the change to make, in the same shape;
zeros leave entries zero-shot. It may write into its argument. A layer's mask gets ``alpha *
task_vector``, and the mask of a combination each task vector, in float32 and any shape.

Keyword-only parameters are options of a recipe or a plan, but for two names that the arithmetic
fills in: ``score`` (one saliency per entry) and ``key`` (seed and parameter name, for random
masks).
"""
