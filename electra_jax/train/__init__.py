"""What trains a model, for pretraining and fine-tuning alike; nothing here knows an objective."""
