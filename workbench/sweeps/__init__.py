"""Many trials as one graph of unique stages: the plan, and runners that bring it to done."""
