"""The kernel backend of ``Splice`` and ``Relay``: SO_SPLICE, and userspace where it falls short."""
