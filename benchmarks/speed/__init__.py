"""Speed of this implementation compared with the published one."""
