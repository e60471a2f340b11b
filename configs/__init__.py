"""The experiments, and the schema of their settings."""
