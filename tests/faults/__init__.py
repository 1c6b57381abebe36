"""Everything that can go wrong around a splice, and what is seen of it: docs/reliability.md."""
