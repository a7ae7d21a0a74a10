"""Published pairs and data sets as benchmarks: one YAML file per family of suites, in
``files/``.
"""
