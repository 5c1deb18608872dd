"""Ask the gradients of a base model which elements training would move, before it is trained."""
