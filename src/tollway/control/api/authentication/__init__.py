"""Pages on which people sign in, their sessions, and the token endpoint."""
