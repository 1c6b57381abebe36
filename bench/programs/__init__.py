"""What the benchmark starts as processes: the load, its target, and relays."""
