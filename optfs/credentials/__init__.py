"""Token sources, the Authentication API's client, and the slot whose credential a background thread renews."""
