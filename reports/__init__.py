"""Pages that a person looks at: one HTML file each, which needs no other file and no network."""
