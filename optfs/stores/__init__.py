"""One protocol over S3 and Google Cloud Storage: pages of a listing, and ranges of a pinned version."""
