"""How a scan becomes a sample: reading and checking volumes, cropping, cohorts, augmentation, batches."""
