"""The operating system: everything that touches it."""
