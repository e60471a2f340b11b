"""Support code that any command needs; imports nothing else of the project."""
