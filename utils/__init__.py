"""Support code that any command needs."""
