"""SO_SPLICE under ``Splice`` and ``Relay``, and what it leaves to userspace."""
