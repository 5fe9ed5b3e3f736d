"""Pictures with class labels."""
