"""Pure functions of (params, batch, seeds). Parameters are plain nested dicts."""
