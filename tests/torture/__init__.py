"""Commands that are ended at random moments, started again, and must come out as if nothing had happened."""
