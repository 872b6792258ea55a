"""Routes of models, deployments and prices."""
