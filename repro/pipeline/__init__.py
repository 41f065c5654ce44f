"""The stages that DVC runs, and what they fetch and share."""
