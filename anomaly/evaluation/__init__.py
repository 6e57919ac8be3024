"""Published benchmarks and their scoring: arrays in, figures out."""
