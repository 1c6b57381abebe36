"""The parts that both backends are built from."""
