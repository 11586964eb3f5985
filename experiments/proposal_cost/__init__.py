"""What a proposal costs."""
