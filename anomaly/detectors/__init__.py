"""One module a detector; `anomaly.registry` names them."""
