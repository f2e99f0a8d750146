"""What an operator sees and does: jobs of all tenants, workers, keys."""
