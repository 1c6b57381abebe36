"""FreeBSD in QEMU, for tests: an image, a machine, a guest to run commands in."""
