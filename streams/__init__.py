"""Kafka to columns and back."""
