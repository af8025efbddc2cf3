"""Weight files, whoever wrote them: what is in them, under whose names. Imports trainer.recipe."""
