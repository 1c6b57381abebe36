"""Random worlds: what must hold of Splice and Relay whatever the kernel and the peers do."""
