"""Random worlds: Splice and Relay must be right whatever the kernel and the peers do."""
