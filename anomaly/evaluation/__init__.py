"""Published benchmarks and their protocols: arrays and files in, figures out."""
