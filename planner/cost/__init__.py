"""What a plan costs: estimators of step time."""
