"""Data of a recommendation model: what is read, and how it becomes batches."""
