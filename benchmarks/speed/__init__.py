"""Speed of this code beside the published way."""
