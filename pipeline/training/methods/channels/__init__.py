"""Methods that rank channels and take the lowest out until a target is met."""
