"""What is done with a run that has trained: answers, measures, exports."""
