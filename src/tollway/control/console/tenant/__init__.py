"""Pages of an organization, for its people and for operators who act for it."""
