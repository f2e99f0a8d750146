"""Who may call and how much: keys, tenants, rate limits, quotas."""
