"""Icons with captions: the same concepts drawn by five icon sets, learned and judged by
captions."""
