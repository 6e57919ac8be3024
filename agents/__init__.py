"""Faust agents: streams joined to compute."""
