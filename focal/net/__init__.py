"""Messages, identities, storage and transport. Knows nothing of ciphertexts:
to this package they are blobs with a digest."""
