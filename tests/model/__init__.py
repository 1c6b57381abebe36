"""A modelled kernel at the package's port: SO_SPLICE, TCP, kqueue and poll, stepped by rules."""
