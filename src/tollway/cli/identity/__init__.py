"""Commands of people, keys and roles, and the login of this machine."""
