"""What both backends are built from."""
