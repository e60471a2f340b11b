"""What a segmenter finds on whole scans, how good that is, and how it looks."""
