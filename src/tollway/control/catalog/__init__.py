"""Models, their deployments, and prices: all that is offered."""
