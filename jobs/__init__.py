"""Jobs, schedules, and the one way to bring everything up to date."""
