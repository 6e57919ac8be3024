"""What `make run` shows of camera frames: a model with its labels, from packages that others keep."""
