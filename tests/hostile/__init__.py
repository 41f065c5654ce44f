"""Broken and hostile inputs by class, through the entry functions of both command lines, under limits."""
