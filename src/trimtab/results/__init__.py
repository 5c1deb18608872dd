"""Result types, and their conversion to and from JSON."""
