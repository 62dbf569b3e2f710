"""From packed chips to batches on a device."""
