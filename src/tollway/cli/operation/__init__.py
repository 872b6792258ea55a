"""Commands that operators run: processes, settings, backup, and checks of what is stored."""
