"""Pages of the platform, for operators."""
