"""What both backends are built from, and what a process has once."""
