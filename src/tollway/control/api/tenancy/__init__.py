"""Routes of organizations, projects, plans and what tenants have stored."""
