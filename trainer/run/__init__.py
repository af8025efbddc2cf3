"""What stands around the loop: checkpoints, held-out loss, the plan, boards. Knows engines and trainer.model, and no family."""
