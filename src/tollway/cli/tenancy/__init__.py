"""Commands of organizations, projects, plans and limits."""
