"""What was measured, and what that says of published values and claims."""
