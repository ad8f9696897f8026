"""Training: recipes, optimiser, schedules and the Lightning modules that run them."""
