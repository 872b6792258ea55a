"""Organizations, projects, service accounts, and the plans that they subscribe to."""
