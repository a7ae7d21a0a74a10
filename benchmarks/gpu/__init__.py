"""What deciding costs on a CUDA device: seconds, idle share, memory, and whether a run repeats its
bytes."""
