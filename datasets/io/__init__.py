"""File formats: everything that reads or writes volumes."""
