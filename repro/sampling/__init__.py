"""From a configuration and seeds to kept images and features."""
