"""The engine in userspace."""
