"""Blocks that outlive the process: identity, checksum, limits."""
