"""Model folders from the hubs: fetched, resumed, verified."""
