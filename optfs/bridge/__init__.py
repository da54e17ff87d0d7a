"""FUSE: the only importer of a binding."""
