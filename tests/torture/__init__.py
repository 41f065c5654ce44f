"""Commands that are ended at random moments and started again, and must come out as if nothing had happened."""
