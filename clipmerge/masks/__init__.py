"""Rules that select the entries of a change to keep, one file per rule.

A mask is a function that takes the *change* of a parameter, a float32 array, and returns the change
to make, in the same shape. Where the returned change is zero, entries stay zero-shot. A mask may
write into its argument. The mask of a layer gets ``alpha * task_vector``. If a method combines
several task vectors, the mask gets each task vector by itself.

Keyword-only parameters are options of a recipe or a plan. clipmerge passes two other parameters to
masks that have them: ``score`` (usually one number per entry) and ``key`` (a text with seed and
parameter name, for random masks).
"""
