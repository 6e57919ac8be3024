"""Inputs made for a model, and answers made of its outputs."""
