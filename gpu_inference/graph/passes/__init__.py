"""Rewrites of a graph that leave its results unchanged."""
