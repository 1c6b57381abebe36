"""Worker threads that move the bytes themselves."""
