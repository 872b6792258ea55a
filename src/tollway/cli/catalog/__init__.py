"""Commands of models, deployments, prices, routes and the platform file."""
