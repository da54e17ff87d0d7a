"""What exists: paths and keys, listings and their age."""
