"""What the content of chips means: bands, classes, values, augmentation."""
