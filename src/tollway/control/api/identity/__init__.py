"""Routes of people, groups, roles, keys and the issuers of foreign tokens."""
