"""``info`` and ``selftest``, which users run to find out whether the package works here."""
