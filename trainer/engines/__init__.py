"""How ranks work together, and what updates the weights. Knows trainer.model, and no family."""
