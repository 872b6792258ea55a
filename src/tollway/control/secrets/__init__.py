"""Keys that seal and sign: what wraps data keys, data keys of organizations, peppers, keys of access tokens."""
