"""What a running job's controller does about an imbalance: asks for a better plan, moves, compares, rolls back."""
