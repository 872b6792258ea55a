"""Routes of the keys that seal secrets, and of peppers."""
