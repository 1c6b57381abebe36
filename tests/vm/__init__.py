"""The runner of ci/freebsd-vm: its pieces, and all of it with a stand-in for FreeBSD."""
