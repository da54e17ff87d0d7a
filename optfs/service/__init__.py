"""One running mount: composition root, background process, control socket, status."""
