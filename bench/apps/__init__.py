"""What users would write: the same handlers for each system. No module here imports perdure."""
