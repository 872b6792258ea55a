"""Routes of limits and quotas."""
