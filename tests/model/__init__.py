"""A model of the kernel, as a platform for the package: SO_SPLICE, TCP, kqueue, poll, by rules."""
