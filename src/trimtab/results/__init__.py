"""What every result is made of: plain data and types, one from the other."""
