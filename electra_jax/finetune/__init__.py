"""Fine-tuning: tasks, their files, heads and scores."""
