"""Open files with a pinned version, readahead, and blocks in memory."""
