"""What the proxies read and decide, without a program."""
