"""The same algorithm in real training systems, each imported by its own name: what it needs is an extra."""
