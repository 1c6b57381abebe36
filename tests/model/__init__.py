"""A modelled kernel under the package's platform: SO_SPLICE, TCP, kqueue, poll, by rules."""
