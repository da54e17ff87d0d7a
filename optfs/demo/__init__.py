"""An embedded stand-in of the Authentication API, S3 and GCS, with a generated export."""
