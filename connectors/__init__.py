"""The outside world: sources and publishers."""
