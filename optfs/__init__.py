"""optfs mounts an Optimizely experimentation export as a read-only local folder."""

__version__ = "0.1.0"
