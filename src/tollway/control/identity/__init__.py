"""People, keys and roles: who there is, and who may do what."""
