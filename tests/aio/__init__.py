"""asyncio: the seams between streams and splices, on real loops and on the modelled kernel."""
